"""Secrets stand in the environment: a URI names the variable, and nothing that is written down holds its value."""

from __future__ import annotations

import logging
import os
import re
from urllib.parse import quote

from trainer.errors import BadInput

_PASSWORD = re.compile(r"(?<=://)([^:/@\s]*):([^@\s]*)@")
_SECRET_OPTION = re.compile(r"([?&][\w.-]*(?:password|passwd|pwd|token|secret|key)[\w.-]*=)([^&\s]+)", re.IGNORECASE)
_REFERENCE = re.compile(r"\$\{(\w+)\}")


def redact(text: str) -> str:
    """The text with the passwords of all URIs in it replaced by `***`; names of environment variables stay."""

    def password(match: re.Match[str]) -> str:
        return f"{match[1]}:{_masked(match[2])}@"

    return _SECRET_OPTION.sub(lambda match: match[1] + _masked(match[2]), _PASSWORD.sub(password, text))


def holds_secret(uri: str) -> bool:
    """Whether a password or token stands in the URI itself, and not as the name of an environment variable."""
    found = [match[2] for pattern in (_PASSWORD, _SECRET_OPTION) for match in pattern.finditer(uri)]
    return any(not _named(secret) for secret in found)


def resolve(uri: str, field: str) -> str:
    """The URI with each `${NAME}` replaced by that environment variable.

    A variable that is the whole URI is taken as it is; in a part of one it is percent-encoded, so that a password may
    have any characters.

    Args:
        uri: from a config; the result must not be stored or logged.
        field: where it stands, for the message.

    Raises:
        BadInput: if a variable is not set.
    """
    missing = [name for name in _REFERENCE.findall(uri) if name not in os.environ]
    if missing:
        raise BadInput(f"{field}: the environment variable {missing[0]} is not set; export it, then run this again")
    if whole := _REFERENCE.fullmatch(uri):
        return os.environ[whole[1]]
    return _REFERENCE.sub(lambda match: quote(os.environ[match[1]], safe=""), uri)


def _named(secret: str) -> bool:
    """Whether a secret is written as the names of variables alone."""
    return not _REFERENCE.sub("", secret)


def _masked(secret: str) -> str:
    return secret if _named(secret) else "***"


class RedactingFilter(logging.Filter):
    """Takes the passwords of URIs out of log lines, those of libraries too."""

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        clean = redact(message)
        if clean != message:
            record.msg, record.args = clean, None
        return True
