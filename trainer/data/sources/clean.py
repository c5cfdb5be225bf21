"""Words out of scraped product pages: HTML, scripts in the place of titles, lists, brands with phrases around them."""

from __future__ import annotations

import html
import re
from typing import Any

from trainer.data.sources.files import as_text

_BLOCK = re.compile(r"<(script|style)\b.*?(?:</\1\s*>|$)", re.IGNORECASE | re.DOTALL)
_INLINE = "a abbr b big cite code dfn em font i ins kbd label mark q s small span strike strong sub sup tt u var"
_OTHER = (
    "address article audio blockquote body br button caption center col dd del div dl dt embed figure footer form h1 "
    "h2 h3 h4 h5 h6 head header hr html iframe img input li link main meta nav noscript object ol option p param pre "
    "section select source svg table tbody td textarea tfoot th thead title tr ul video"
)


def _tags(names: str) -> re.Pattern[str]:
    """HTML's own names only: "<half a gallon>" are words."""
    return re.compile(rf"</?(?:{'|'.join(names.split())})\b[^<>]*>", re.IGNORECASE)


_WITHIN_WORDS, _BETWEEN_WORDS = _tags(_INLINE), _tags(_OTHER)
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_DUMP = re.compile(
    r"\s*(?:var\s+\w+\s*=|\(?function\b\s*\w*\(|window\.\w+|[#.][\w.#-]+[^{}<>]{0,80}\{|@(?:media|import)\b[^{;]*[{;])|.*\bgetTime\s*\(",
    re.DOTALL,
)
"""How a title begins that is a script or a style sheet, and a call that only scripts have."""
_PAGE = re.compile(r"visit amazon's (.*?) page", re.IGNORECASE)
_BY = re.compile(r"\A\s*by\s*\n\s*", re.IGNORECASE)


def clean_text(value: Any) -> str:
    """A cell as words: HTML entities resolved, tags, scripts and styles removed, one space between words.

    The entries of a list are joined by spaces.
    """
    text = as_text(value)
    if "&" in text:  # before the tags, since they stand escaped as well
        text = html.unescape(text)
    if "<" in text:
        text = _WITHIN_WORDS.sub("", _BETWEEN_WORDS.sub(" ", _COMMENT.sub(" ", _BLOCK.sub(" ", text))))
    return " ".join(text.split())


def clean_title(value: Any) -> str:
    """A title as words; "" where a script or a style sheet stands in its place."""
    return "" if _DUMP.match(as_text(value)) else clean_text(value)


def clean_list(value: Any) -> str:
    """The entries of a list, however nested, each cleaned and each once, joined by spaces."""
    return " ".join(dict.fromkeys(filter(None, map(clean_text, _entries(value)))))


def clean_brand(value: Any) -> str:
    """A brand without "Visit Amazon's … Page" and without a leading "by" on a line of its own."""
    text = clean_text(_BY.sub("", value, count=1) if isinstance(value, str) else value)
    page = _PAGE.fullmatch(text)
    return page.group(1) if page else text


def _entries(value: Any) -> list[Any]:
    return [entry for part in value for entry in _entries(part)] if isinstance(value, list) else [value]
