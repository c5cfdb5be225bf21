"""Command-line options out of a config section: its field descriptions are the help."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from trainer.config import Section


def add_options(parser: argparse.ArgumentParser, title: str, section: type[Section]) -> list[str]:
    """Add a group with one option a field; values stay texts under `option_NAME`, None where absent.

    Returns:
        The names of the fields.
    """
    group = parser.add_argument_group(title, inspect.getdoc(section))
    for name, field in section.model_fields.items():
        flag, target = f"--{name.replace('_', '-')}", f"option_{name}"
        if field.annotation is bool:
            group.add_argument(flag, dest=target, action="store_const", const=True, help=_help(field))
        else:
            group.add_argument(flag, dest=target, metavar=_metavar(field.annotation), help=_help(field))
    return list(section.model_fields)


def _help(field: FieldInfo) -> str:
    """The description, with the default in brackets, as argparse wants it."""
    default = ",".join(field.default) if isinstance(field.default, tuple) else field.default
    told = field.description if default in (None, False) else f"{field.description} ({default})"
    return str(told).replace("%", "%%")


def _metavar(annotation: Any) -> str:
    """A,B for a list, the choices of a literal, N for a number, else VALUE."""
    kinds = list(_kinds(annotation))
    if tuple in kinds:
        return "A,B"
    choices = [kind for kind in kinds if isinstance(kind, str)]
    if choices:
        return "{" + ",".join(choices) + "}"
    return "VALUE" if str in kinds else "N"


def _kinds(annotation: Any) -> Iterator[Any]:
    """The types in a type, and the choices of its literals."""
    origin = get_origin(annotation)
    if origin is Literal:
        yield from get_args(annotation)
        return
    yield origin or annotation
    for part in get_args(annotation):
        yield from _kinds(part)
