"""RecBole's atomic files (Zhao et al., CIKM 2021): `.inter` and `.item`, tab separated, with typed column names."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from trainer.data.sources.base import RawData, Source
from trainer.data.sources.columns import attribute_columns, find_column
from trainer.data.sources.files import TableFile
from trainer.data.sources.locate import locate
from trainer.data.sources.table import TableOptions, read_tables
from trainer.errors import BadInput

_TYPES = ("token", "token_seq", "float", "float_seq")


class RecboleOptions(TableOptions):
    """A folder with NAME.inter and NAME.item, also .gz; columns are named without their types, as for `table`."""

    items: str | None = Field(None, description="Items file; the only `.item` in the source folder when absent.")
    interactions: str | None = Field(
        None, description="Interactions file; the only `.inter` in the source folder when absent."
    )


def open_atomic(path: Path) -> tuple[TableFile, dict[str, str]]:
    """An atomic file whose columns have lost their types, and column → type.

    Raises:
        BadInput: if a column name has no type, or an unknown one.
    """
    file = TableFile(path, kind="tsv")
    types = {}
    for header in file.columns:
        name, _, kind = header.rpartition(":")
        if not name or kind not in _TYPES:
            raise BadInput(
                f"{path}: column {header!r} has no type of RecBole's atomic files; write it as name:type, the type "
                f"being one of {', '.join(_TYPES)}"
            )
        types[name] = kind
    if len(types) < len(file.columns):
        raise BadInput(f"{path}: a column stands there twice, with different types; rename one")
    file.columns = list(types)
    return file, types


def is_atomic(name: str, kind: str) -> bool:
    """Whether a file's name ends in this kind of atomic file, such as `item`."""
    return name.removesuffix(".gz").endswith(f".{kind}")


def _read(path: Path | None, options: RecboleOptions) -> RawData:
    items, types = open_atomic(_locate(path, options.items, "items", "item"))
    interactions, _ = open_atomic(_locate(path, options.interactions, "interactions", "inter"))
    if "item_id_list" in interactions.columns:
        raise BadInput(f"{interactions.path}: holds whole histories a row (item_id_list); read it by format unisrec")
    if options.attributes is None:
        options = options.model_copy(update={"attributes": _words(items, types, options)})
    return read_tables(items, interactions, options)


def _locate(folder: Path | None, named: str | None, option: str, kind: str) -> Path:
    return locate(folder, named, option, f"*.{kind}", lambda name: is_atomic(name, kind))


def _words(file: TableFile, types: dict[str, str], options: RecboleOptions) -> tuple[str, ...]:
    """The columns of a sentence when none were asked for: as for `table`, but no numbers, such as a sales rank."""
    item_id = find_column("item_id", options.item_id, file.columns, file.path)
    others = [column for column in file.columns if column != item_id]
    title = find_column("title", options.title, others, file.path)
    words = [column for column in others if column == title or not types[column].startswith("float")]
    return tuple(attribute_columns(words, title, None, file.path).values())


RECBOLE = Source(RecboleOptions, _read)
