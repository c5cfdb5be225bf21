"""Amazon review data 2018 (Ni, Li, McAuley, EMNLP 2019): reviews and metadata as JSON lines, each also .gz."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field

from trainer.config import Section
from trainer.data.sources.base import RawData, Source
from trainer.data.sources.clean import clean_brand, clean_list, clean_text, clean_title
from trainer.data.sources.columns import split_at_commas
from trainer.data.sources.files import TableFile, as_text, as_time
from trainer.data.sources.locate import locate
from trainer.data.sources.log import Log
from trainer.errors import BadInput

_ENDINGS = (".json", ".jsonl", ".json.gz", ".jsonl.gz")
_REVIEW = ("reviewerID", "asin", "unixReviewTime", "overall")
_NAMES = {"category": "categories"}
_CLEAN: Mapping[str, Callable[[Any], str]] = {"title": clean_title, "brand": clean_brand, "category": clean_list}


class AmazonOptions(Section):
    """A folder with reviews and metadata of one category, JSON lines of the 2018 set, also .gz."""

    reviews: str | None = Field(None, description="Reviews file; the only JSON file but `meta*` when absent.")
    metadata: str | None = Field(None, description="Metadata file; the only JSON file `meta_*` when absent.")
    attributes: Annotated[
        tuple[Literal["brand", "category", "description", "feature", "main_cat", "price"], ...],
        BeforeValidator(split_at_commas),
    ] = Field(
        ("brand", "category"),
        description="Fields that join the title, as `a,b`: brand, category, description, feature, main_cat, price.",
    )


@dataclass
class _Metadata:
    """What the metadata says of the reviewed items.

    Args:
        index: [reviewed items] place in `item_ids`, -1 for an item without metadata.
        item_ids: in the order of the file.
        attributes: name → [items].
        rows: of the file.
        repeated: rows of an item that stood there already.
        scripts: titles that were scripts or style sheets.
    """

    index: NDArray[np.int32]
    item_ids: list[str]
    attributes: dict[str, list[str]]
    rows: int = 0
    repeated: int = 0
    scripts: int = 0


def _read(path: Path | None, options: AmazonOptions) -> RawData:
    expected = "the reviews, such as Gift_Cards_5.json.gz"
    reviews = TableFile(locate(path, options.reviews, "reviews", expected, _are_reviews), scan=1, kind="jsonl")
    expected = "the metadata, such as meta_Gift_Cards.json.gz"
    details = TableFile(locate(path, options.metadata, "metadata", expected, _is_metadata), scan=1, kind="jsonl")
    log, reviewed = _read_reviews(reviews)
    metadata = _read_metadata(details, reviewed, options)
    items = metadata.index[np.frombuffer(log.items, np.int32)]
    known, ratings = items >= 0, log.rating_array()
    if not known.any():
        raise BadInput(f"{details.path}: has none of the reviewed items; take reviews and metadata of one category")
    return RawData(
        item_ids=metadata.item_ids,
        attributes=metadata.attributes,
        user_ids=list(log.user_index),
        users=np.frombuffer(log.users, np.int32)[known],
        items=items[known],
        times=log.times.numpy()[known],
        ratings=None if ratings is None else ratings[known],
        source_files={file.path.name: file.sha256() for file in (details, reviews)},
        rules=[
            f"Of {metadata.rows} rows of metadata the {len(metadata.item_ids)} items with reviews were read.",
            f"Item sentences are made of {', '.join(metadata.attributes)}, without HTML.",
        ],
        warnings=_warnings(metadata, int((~known).sum())),
    )


def _are_reviews(name: str) -> bool:
    return name.endswith(_ENDINGS) and not name.lower().startswith("meta")


def _is_metadata(name: str) -> bool:
    return name.endswith(_ENDINGS) and name.lower().startswith("meta_")


def _read_reviews(file: TableFile) -> tuple[Log, dict[str, int]]:
    """The reviews, with items in the order of their first review, and ASIN → item."""
    log = Log()
    reviewed: dict[str, int] = {}
    for number, (user, asin, time, rating) in file.rows(_REVIEW):
        user_id, item_id, when = as_text(user), as_text(asin), as_time(time)
        if not user_id or not item_id or when is None:
            field = "reviewerID" if not user_id else "asin" if not item_id else "number unixReviewTime"
            raise BadInput(f"{file.where(number)}: has no {field}; mend or remove the row")
        log.append(user_id, reviewed.setdefault(item_id, len(reviewed)), when)
        log.append_rating(rating)
    return log, reviewed


def _read_metadata(file: TableFile, reviewed: Mapping[str, int], options: AmazonOptions) -> _Metadata:
    """Only the reviewed items: a category's metadata has many more, with long texts."""
    fields = ("title", *(field for field in ("brand", "category") if field in options.attributes))
    fields = tuple(dict.fromkeys((*fields, *options.attributes)))
    metadata = _Metadata(np.full(len(reviewed), -1, np.int32), [], {_NAMES.get(field, field): [] for field in fields})
    for number, (asin, *cells) in file.rows(("asin", *fields)):
        metadata.rows += 1
        item = reviewed.get(as_text(asin))
        if item is None:
            if not as_text(asin):
                raise BadInput(f"{file.where(number)}: has no asin; mend or remove the row")
        elif metadata.index[item] >= 0:
            metadata.repeated += 1
        else:
            metadata.index[item] = len(metadata.item_ids)
            metadata.item_ids.append(as_text(asin))
            for field, values, cell in zip(fields, metadata.attributes.values(), cells, strict=True):
                values.append(_CLEAN.get(field, clean_text)(cell))
            metadata.scripts += bool(as_text(cells[0])) and not metadata.attributes["title"][-1]
    return metadata


def _warnings(metadata: _Metadata, unknown: int) -> list[str]:
    counted = {
        "reviews went because their item has no metadata.": unknown,
        "rows of metadata went because their item stood there already; the first stayed.": metadata.repeated,
        "titles are no words but scripts, style sheets or HTML; their items count as untitled.": metadata.scripts,
    }
    return [f"{count} {what}" for what, count in counted.items() if count]


AMAZON = Source(AmazonOptions, _read)
