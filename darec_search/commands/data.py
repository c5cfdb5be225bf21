"""`data prepare`, `data show`."""

from __future__ import annotations

import argparse
from pathlib import Path

from darec_search.commands.output import console, print_json, say
from trainer.errors import BadInput


def prepare(parsed: argparse.Namespace, rest: list[str]) -> None:
    """`rest` is the source and the options of the format, which are known only once the format is."""
    from trainer.data import prepare as preparation

    if parsed.help and parsed.format is None:
        parsed.parser.print_help()
        console.print("\nWith a format, --help shows its options and the filters.", highlight=False)
        return
    parser, names = _prepare_parser(parsed)
    if parsed.help:
        parser.print_help()
        return
    if parsed.out is None:
        raise BadInput("--out is missing; name the dataset folder to write")
    found = vars(parser.parse_args(["--format", parsed.format, "--out", str(parsed.out), *rest]))
    chosen = {name: found[f"option_{name}"] for name in names if found[f"option_{name}"] is not None}
    with console.status(f"preparing {parsed.out}"):
        preparation.prepare(parsed.format, found["source"], parsed.out, **chosen)
    _show_dataset(parsed.out, as_json=False)


def _prepare_parser(parsed: argparse.Namespace) -> tuple[argparse.ArgumentParser, list[str]]:
    """A parser with the options of the format and the filters, and the names of these options."""
    from darec_search.options import add_options
    from trainer.data.filters import FilterOptions
    from trainer.data.sources import SOURCES

    if parsed.format not in SOURCES:
        named = "--format is missing" if parsed.format is None else f"--format {parsed.format!r} is unknown"
        raise BadInput(f"{named}; the formats are {', '.join(sorted(SOURCES))}")
    parser = argparse.ArgumentParser(
        parents=[parsed.parser],
        prog="darec-search data prepare",
        usage=f"%(prog)s [source] --format {parsed.format} --out OUT [options]",
        conflict_handler="resolve",
    )
    parser.add_argument("source", nargs="?", type=Path, help="folder to read; none for synthetic")
    names = add_options(parser, f"format {parsed.format}", SOURCES[parsed.format].options)
    return parser, names + add_options(parser, "filters", FilterOptions)


def show(parsed: argparse.Namespace, rest: list[str]) -> None:
    """Figures, fingerprint and warnings of a dataset."""
    _show_dataset(parsed.folder, parsed.json)


def _show_dataset(folder: str, as_json: bool) -> None:
    from rich.markup import escape
    from rich.table import Table

    from trainer.data.dataset import openings_of, read_manifest

    manifest = read_manifest(folder)
    if as_json:
        print_json(manifest.model_dump(mode="json"))
        return
    table = Table(title=escape(folder), title_justify="left", show_header=False)
    for name in ("users", "items", "interactions", "train_interactions"):
        table.add_row(name.replace("_", " "), f"{getattr(manifest, name):,}")
    for name, value in manifest.figures.items():
        table.add_row(name.replace("_", " "), f"{value:,.4g}")
    for name, count in manifest.removed.items():
        table.add_row(f"removed: {name.replace('_', ' ')}", f"{count:,}")
    table.add_row("fingerprint", manifest.fingerprint)
    openings = openings_of(folder)
    table.add_row("test split opened", f"{len(openings)} times" if len(openings) != 1 else "once")
    console.print(table)
    for rule in manifest.rules:
        say(f"· {rule}")
    for warning in manifest.warnings:
        console.print(f"! {warning}", style="yellow", highlight=False, markup=False)
