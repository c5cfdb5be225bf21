"""Raw interactions → dataset folder."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import ValidationError

from trainer.config import Section
from trainer.data.dataset import (
    MANIFEST,
    VERSION,
    Manifest,
    digest_integers,
    digest_items,
    digest_strings,
    has_dataset,
    publish,
)
from trainer.data.filters import FilterOptions, Kept, apply_filters
from trainer.data.ragged import Ragged
from trainer.data.sources import SOURCES
from trainer.data.sources.base import RawData
from trainer.data.strings import Strings
from trainer.data.text import item_sentence
from trainer.errors import BadInput
from trainer.storage import Store, is_url, local_path, scratch

logger = logging.getLogger(__name__)


def prepare(format: str, source: Path | None, out: Path | str, **options: Any) -> Manifest:
    """Read, filter, split and write a dataset folder, whole or not at all.

    Args:
        format: a name in `SOURCES`.
        source: what to read; None for a format that needs nothing.
        out: the dataset folder, or its URL; one that holds an earlier dataset is replaced.
        **options: those of the format and of `FilterOptions`.

    Raises:
        BadInput: for anything that the caller can mend.
        StorageError: if the URL cannot be written.
    """
    if is_url(out):
        if not has_dataset(out) and Store(str(out)).entries():
            raise BadInput(f"{out}: holds other files and no dataset; name a new folder")
        with tempfile.TemporaryDirectory(dir=scratch(), prefix="prepare-") as here:
            manifest = prepare(format, source, Path(here, "dataset"), **options)
            publish(Path(here, "dataset"), str(out))
        return manifest
    out = local_path(out)
    if format not in SOURCES:
        raise BadInput(f"format {format!r} is unknown; the formats are {', '.join(sorted(SOURCES))}")
    _check_out(out)
    reader = SOURCES[format]
    filter_options, source_options = _split_options(format, options, reader.options)
    raw = reader.read(source, source_options)
    lacking = [name for name in filter_options.sentence or () if name not in raw.attributes]
    if lacking:
        raise BadInput(f"sentence: items have no attribute {lacking[0]!r}; they have {', '.join(raw.attributes)}")
    kept = apply_filters(raw, filter_options)
    chosen = _as_written(filter_options, source_options)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        manifest = _write(temporary, format, source.name if source else None, chosen, raw, kept)
        temporary.chmod(0o755)
        _put_in_place(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    logger.info("prepared %s: %d users, %d items", out, manifest.users, manifest.items)
    return manifest


def resolve_options(format: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """All options of a format with their defaults, as a manifest holds them.

    Raises:
        BadInput: if the format or an option is unknown, or a value is impossible.
    """
    if format not in SOURCES:
        raise BadInput(f"format {format!r} is unknown; the formats are {', '.join(sorted(SOURCES))}")
    return _as_written(*_split_options(format, options, SOURCES[format].options))


def _as_written(filters: FilterOptions, source: Section) -> dict[str, Any]:
    return {**source.model_dump(mode="json", exclude_none=True), **filters.model_dump(mode="json", exclude_none=True)}


def _check_out(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise BadInput(f"{out}: is a file; name a folder for the dataset")
    if out.is_dir() and any(out.iterdir()) and not (out / MANIFEST).exists():
        raise BadInput(f"{out}: holds other files and no dataset; name a new folder")


def _split_options(format: str, options: Mapping[str, Any], kind: type[Section]) -> tuple[FilterOptions, Any]:
    """The filters' options and the format's."""
    known = [*kind.model_fields, *FilterOptions.model_fields]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise BadInput(f"option {', '.join(unknown)} is unknown to format {format}; the options are {', '.join(known)}")
    try:
        filters = FilterOptions(**{name: options[name] for name in FilterOptions.model_fields if name in options})
        return filters, kind(**{name: options[name] for name in kind.model_fields if name in options})
    except ValidationError as error:
        raise BadInput(f"options of format {format}: {'; '.join(map(_problem, error.errors()))}") from error


def _problem(error: Mapping[str, Any]) -> str:
    message = str(error.get("ctx", {}).get("error", error["msg"]))
    return f"{'.'.join(map(str, error['loc']))}: {message}, got {error['input']!r}" if error["loc"] else message


def _write(
    folder: Path, format: str, source: str | None, options: dict[str, Any], raw: RawData, kept: Kept
) -> Manifest:
    item_ids, user_ids = Strings(raw.item_ids).take(kept.items), Strings(raw.user_ids).take(kept.users)
    attributes = {name: Strings(values).take(kept.items) for name, values in raw.attributes.items()}
    sentences = Strings(
        item_sentence(dict(zip(attributes, row, strict=True)), options.get("sentence"))
        for row in zip(*attributes.values(), strict=True)
    )
    ends = kept.histories.offsets[1:]
    validation, test = kept.histories.values[ends - 2], kept.histories.values[ends - 1]
    held_out = np.concatenate([ends - 2, ends - 1])
    train = Ragged.from_lengths(np.delete(kept.histories.values, held_out), kept.histories.lengths - 2)

    pq.write_table(pa.table({"id": item_ids, "sentence": sentences, **attributes}), folder / "items.parquet")
    pq.write_table(pa.table({"id": user_ids}), folder / "users.parquet")
    train.save(folder / "train.parquet", "items")
    pq.write_table(pa.table({"item": validation}), folder / "validation.parquet")
    pq.write_table(pa.table({"item": test}), folder / "test.parquet")
    digests = {
        "items": digest_items(item_ids, sentences, attributes),
        "users": digest_strings(user_ids),
        "train": digest_integers(train.offsets, train.values),
        "validation": digest_integers(validation),
        "test": digest_integers(test),
    }
    manifest = Manifest(
        version=VERSION,
        format=format,
        source=source,
        options=options,
        users=len(user_ids),
        items=len(item_ids),
        interactions=len(kept.histories.values),
        train_interactions=len(train.values),
        figures=_figures(kept.histories, train, len(item_ids)),
        rules=raw.rules + kept.rules + _rules(options),
        removed=kept.removed,
        warnings=raw.warnings + kept.warnings,
        source_files=raw.source_files,
        digests=digests,
        fingerprint=hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest(),
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return manifest


def _rules(options: Mapping[str, Any]) -> list[str]:
    repeats = [] if "duplicates" in options else ["Repeated interactions of a user with an item stayed."]
    sentence = (
        [f"Item sentences hold {', '.join(options['sentence'])}, in this order."] if "sentence" in options else []
    )
    return [
        *sentence,
        "Items without a title went.",
        f"Items with fewer than {options['min_item_interactions']} and users with fewer than "
        f"{options['min_user_interactions']} interactions went, again and again until nothing changed.",
        "Items without any interaction left went.",
        "Interactions were sorted by time within a user, stably: equal times keep the order of the source.",
        *repeats,
        "Leave-one-out: a user's last interaction is the test item, the one before the validation item, the rest the "
        "training part.",
    ]


def _figures(histories: Ragged, train: Ragged, n_items: int) -> dict[str, float]:
    lengths = histories.lengths
    counts = np.bincount(histories.values, minlength=n_items)
    train_counts = np.bincount(train.values, minlength=n_items)
    figures = {f"length_{q}%": _quantile(lengths, q) for q in (0, 5, 25, 50, 75, 95, 99, 100)}
    figures |= {f"item_interactions_{q}%": _quantile(counts, q) for q in (0, 50, 100)}
    return {
        "mean_length": round(float(lengths.mean()), 4),
        **figures,
        "density": round(len(histories.values) / (len(histories) * n_items), 6),
        "repeats": float(_repeats(histories, n_items)),
        "items_without_training_interaction": float((train_counts == 0).sum()),
        "items_with_two_or_fewer_training_interactions": float((train_counts <= 2).sum()),
    }


def _quantile(values: NDArray[np.integer], percent: int) -> float:
    return float(np.percentile(values, percent))


def _repeats(histories: Ragged, n_items: int) -> int:
    pairs = histories.row_of_value
    pairs *= n_items
    pairs += histories.values
    pairs.sort()
    return int((pairs[1:] == pairs[:-1]).sum())


def _put_in_place(temporary: Path, out: Path) -> None:
    """Rename the finished folder to `out`; an earlier dataset there is moved aside first, then deleted."""
    if not out.exists():
        temporary.rename(out)
        return
    aside = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.old."))
    out.rename(aside / "dataset")
    temporary.rename(out)
    shutil.rmtree(aside)
