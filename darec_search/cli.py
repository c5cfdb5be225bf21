"""`darec-search`: parse, call, print.

Exit codes: 0 done · 2 bad input, nothing spent · 3 stopped with work left (run again to resume) · 1 anything else.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from trainer.errors import BadInput

if TYPE_CHECKING:
    from darec_search.findings import Findings
    from trainer.data.dataset import Split

# Set before Ray, MLflow and Hugging Face are imported by the commands.
for _name, _value in {
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
}.items():
    os.environ.setdefault(_name, _value)

console = Console()
errors = Console(stderr=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    from darec_search.console import set_up_logging

    parsed, rest = _parser().parse_known_args(arguments)
    if rest and parsed.command is not _data_prepare:
        errors.print(f"darec-search: unknown argument {rest[0]}; see `darec-search --help`", markup=False)
        return 2
    set_up_logging(errors, parsed.verbose)
    try:
        return int(parsed.command(parsed, rest) or 0)
    except BadInput as error:
        errors.print(f"darec-search: {error}", markup=False, highlight=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        errors.print("darec-search: stopped; nothing finished is lost, the same command goes on", markup=False)
        return 3
    except Exception as error:
        if parsed.verbose:
            raise
        logging.getLogger(__name__).debug("failed", exc_info=True)
        message = f"darec-search: {type(error).__name__}: {error} (--verbose shows where)"
        errors.print(message, markup=False, highlight=False, soft_wrap=True)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="darec-search", description=__doc__.splitlines()[2])
    parser.add_argument("-v", "--verbose", action="store_true", help="log lines and tracebacks")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    data = commands.add_parser("data", help="prepare and show datasets").add_subparsers(required=True)
    prepare = data.add_parser("prepare", help="raw data to a dataset folder", add_help=False)
    prepare.add_argument("--format", help="amazon, recbole, recformer, synthetic, table or unisrec")
    prepare.add_argument("--out", type=Path, help="dataset folder to write")
    prepare.add_argument("-h", "--help", action="store_true", help="show this and the format's own options")
    _verbose(prepare)
    prepare.set_defaults(command=_data_prepare, parser=prepare)
    show = _command(data, "show", _data_show, "figures, fingerprint, warnings")
    show.add_argument("folder", type=Path)
    _json(show)

    for name, command, text in (
        ("check", _check, "validate a study or run file and say what would run; no training"),
        ("run", _run, "the main job: search, promote, export; started again it resumes"),
    ):
        study = _command(commands, name, command, text)
        what = "study or run file" if name == "check" else "study file"
        study.add_argument("study", type=Path, help=f"{what} (YAML)")
        study.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="override, such as a.b=c")
        study.add_argument("--address", help="Ray cluster to join")
        _json(study)
    study.add_argument("--dry-run", action="store_true", help="as `check`")

    status = _command(commands, "status", _status, "the trials of a study")
    report = _command(commands, "report", _report, "write report.html")
    promote = _command(commands, "promote", _promote, "promote what the search has found so far")
    export = _command(commands, "export", _export, "the best architecture and its model as a folder")
    sync = _command(commands, "sync", _sync, "replay a study folder into MLflow")
    for of_study in (status, report, promote, export, sync):
        of_study.add_argument("folder", type=Path, help="study folder")
    _json(status)
    export.add_argument("--to", type=Path, required=True, help="folder to write")
    sync.add_argument("--tracking-uri", help="MLflow; the study's own when absent")

    train = _command(commands, "train", _train, "the trainings of a run file, without a search; resumes")
    train.add_argument("run", type=Path, help="run file (YAML)")
    train.add_argument("--out", type=Path, required=True, help="folder of the run, or of all runs")
    train.add_argument("--only", metavar="NAME,…", help="some of the file's runs")
    train.add_argument("--test", action="store_true", help="measure every model on the test split too, once")
    train.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="override")

    recommend = _command(commands, "recommend", _recommend, "the best next items after a history")
    recommend.add_argument("model", type=Path, help="exported folder")
    history = recommend.add_mutually_exclusive_group(required=True)
    history.add_argument("--history", help="item ids, oldest first, separated by commas")
    history.add_argument("--histories", type=Path, help="file with one such history a line")
    recommend.add_argument("--top", type=int, default=10, help="items per history (10)")
    _json(recommend)

    evaluate = _command(commands, "evaluate", _evaluate, "metrics of an exported model on a dataset")
    evaluate.add_argument("model", type=Path, help="exported folder")
    evaluate.add_argument("data", type=Path, help="dataset folder")
    evaluate.add_argument("--split", choices=("test", "validation"), default="test")
    evaluate.add_argument("--cutoffs", default="10", metavar="K,K,…", help="lengths of top lists (10)")
    evaluate.add_argument("--per-user", type=Path, metavar="FILE", help="Parquet file to write, a row a user")
    _json(evaluate)
    return parser


def _command(commands: Any, name: str, command: Any, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    parser.set_defaults(command=command)
    _verbose(parser)
    return parser


def _verbose(parser: argparse.ArgumentParser) -> None:
    # No default here: it would overwrite what stands before the command.
    parser.add_argument("-v", "--verbose", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")


def _say(text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _print_json(document: Any) -> None:
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def _data_prepare(parsed: argparse.Namespace, rest: list[str]) -> None:
    """`rest` is the source and the options of the format, which are known only once the format is."""
    from trainer.data.prepare import prepare

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
        prepare(parsed.format, found["source"], parsed.out, **chosen)
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


def _data_show(parsed: argparse.Namespace, rest: list[str]) -> None:
    _show_dataset(parsed.folder, parsed.json)


def _show_dataset(folder: Path, as_json: bool) -> None:
    from rich.markup import escape
    from rich.table import Table

    from trainer.data.dataset import read_manifest

    manifest = read_manifest(folder)
    if as_json:
        _print_json(manifest.model_dump(mode="json"))
        return
    table = Table(title=escape(str(folder)), title_justify="left", show_header=False)
    for name in ("users", "items", "interactions", "train_interactions"):
        table.add_row(name.replace("_", " "), f"{getattr(manifest, name):,}")
    for name, value in manifest.figures.items():
        table.add_row(name.replace("_", " "), f"{value:,.4g}")
    for name, count in manifest.removed.items():
        table.add_row(f"removed: {name.replace('_', ' ')}", f"{count:,}")
    table.add_row("fingerprint", manifest.fingerprint)
    console.print(table)
    for rule in manifest.rules:
        _say(f"· {rule}")
    for warning in manifest.warnings:
        console.print(f"! {warning}", style="yellow", highlight=False, markup=False)


def _load(parsed: argparse.Namespace) -> Any:
    from darec_search.config import load_study

    address = [f"resources.address={parsed.address}"] if parsed.address else []
    return load_study(parsed.study, [*parsed.set, *address])


def _check(parsed: argparse.Namespace, rest: list[str]) -> None:
    from darec_search.config import read_yaml
    from darec_search.runfile import is_run_file

    if is_run_file(read_yaml(parsed.study)):
        _check_runs(parsed)
    else:
        _check_study(parsed)


def _check_study(parsed: argparse.Namespace) -> None:
    from dataclasses import asdict

    from darec_search import planning
    from darec_search.findings import Findings

    config = _load(parsed)
    found = Findings()
    dataset = found.collect(lambda: planning.open_dataset(config))
    layers = planning.inspect(config, dataset, found)
    if _incomplete(parsed, found) or dataset is None or layers is None:
        return
    plan = planning.size(config, dataset, layers)
    if parsed.json:
        _print_json({**asdict(plan), "runs": plan.runs, "folder": str(config.folder), "missing": []})
        return
    _say(f"{parsed.study} is valid. It would run, in {config.folder}:")
    _say(
        f"  {plan.grid_trials} trials of the λ grid and {plan.search_trials} proposed by {config.search.sampler}, "
        f"of {plan.points:,} points ({plan.layers} DALayers)"
    )
    _say(f"  each on {plan.search_users:,} of {plan.users:,} users, {config.resources.slots} at a time")
    _say(f"  then at most {plan.retests} re-tests and {plan.full_runs} trainings on all users")


def _check_runs(parsed: argparse.Namespace) -> None:
    from darec_search.runfile import load_run_file
    from darec_search.sweep import inspect_runs, trainings

    file = load_run_file(parsed.study, parsed.set)
    if _incomplete(parsed, inspect_runs(file)):
        return
    planned = trainings(file, Path())
    if parsed.json:
        _print_json({"runs": list(file.runs), "trainings": len(planned), "missing": []})
        return
    _say(f"{parsed.study} is valid. `darec-search train` would do {len(planned)} trainings:")
    for name, run in file.runs.items():
        seeds = ", ".join(map(str, run.seeds))
        _say(f"  {name}: at most {run.config.optimization.epochs} epochs on {run.config.data.path}, seed {seeds}")


def _incomplete(parsed: argparse.Namespace, found: Findings) -> bool:
    """Refuse a file with problems; say what is missing of one without."""
    found.refuse(missing=False)
    if not found.missing:
        return False
    if parsed.json:
        _print_json({"missing": found.missing})
        return True
    _say(f"{parsed.study} is valid. Before it can run, this machine needs:")
    for line in found.missing:
        _say(f"  {line}")
    return True


def _run(parsed: argparse.Namespace, rest: list[str]) -> None:
    if parsed.dry_run:
        _check(parsed, rest)
        return
    from darec_search import pipeline
    from darec_search.console import ConsoleObserver, print_result
    from darec_search.controller import stopping_on_signals

    config = _load(parsed)
    with stopping_on_signals():
        with ConsoleObserver(console, config.resources.slots) as observer:
            result = pipeline.run(config, observer)
        print_result(console, result)
        _print_example(result.model, Path(config.data.path))


def _print_example(model: Path, data: Path) -> None:
    """One recommendation in titles, so that a first run ends with what it is all for."""
    from darec_search.export import load
    from trainer.data.dataset import Dataset

    recommender = load(model)
    dataset = Dataset.open(data)
    history = [dataset.item_ids[item] for item in dataset.train[0][-3:]]
    console.print()
    _say("\n  ".join(["After", *(f"“{title}”" for title in recommender.titles(history))]))
    _say("it recommends")
    for place, item in enumerate(recommender.recommend([history], top=5)[0], 1):
        _say(f"  {place}. {item.title}")


def _status(parsed: argparse.Namespace, rest: list[str]) -> None:
    from darec_search.console import status_document, status_table
    from darec_search.study import Study

    study = Study.load(parsed.folder)
    if parsed.json:
        _print_json(status_document(study))
    else:
        console.print(status_table(study))


def _report(parsed: argparse.Namespace, rest: list[str]) -> None:
    from darec_search.report import write_report
    from darec_search.study import Study

    _say(str(write_report(Study.load(parsed.folder))))


def _promote(parsed: argparse.Namespace, rest: list[str]) -> None:
    from darec_search import pipeline
    from darec_search.console import ConsoleObserver, print_result
    from darec_search.controller import stopping_on_signals
    from darec_search.study import Study

    study = Study.load(parsed.folder)
    with stopping_on_signals():
        with ConsoleObserver(console, study.config.resources.slots) as observer:
            result = pipeline.promote(study, observer)
        print_result(console, result)


def _export(parsed: argparse.Namespace, rest: list[str]) -> None:
    from darec_search.export import export
    from darec_search.study import Study

    card = export(Study.load(parsed.folder), parsed.to)
    _say(f"{card.architecture} written to {parsed.to}")


def _sync(parsed: argparse.Namespace, rest: list[str]) -> None:
    from darec_search.study import Study
    from darec_search.tracking import TRACKERS

    study = Study.load(parsed.folder)
    synced = TRACKERS["mlflow"](study, parsed.tracking_uri or study.config.tracking.uri).sync()
    _say(f"{synced.runs} runs ({synced.created} new, {synced.updated} changed) in {synced.location}")


def _train(parsed: argparse.Namespace, rest: list[str]) -> int:
    from darec_search.controller import stopping_on_signals
    from darec_search.runfile import load_run_file
    from darec_search.sweep import inspect_runs, train_all, trainings
    from darec_search.sweep_console import SweepObserver, print_results
    from darec_search.sweep_results import FILE, summarise

    whole = load_run_file(parsed.run, parsed.set)
    file = whole.only([name.strip() for name in parsed.only.split(",")]) if parsed.only else whole
    inspect_runs(file).refuse()
    planned = trainings(file, parsed.out)
    split: Split | None = "test" if parsed.test else "validation" if file.sweep else None
    with stopping_on_signals(), SweepObserver(console, len(planned)) as observer:
        results = list(train_all(planned, split, observer))
    if file.sweep:
        # All that stands in the folder, also what another process did there.
        print_results(console, summarise(whole, parsed.out))
        _say(str(parsed.out / FILE))
    else:
        _say(f"{results[0].status}: {parsed.out / 'result.json'}")
        if parsed.test and results[0].status == "finished":
            _say_metrics(json.loads((parsed.out / "metrics.json").read_text(encoding="utf-8")))
    for result in results:
        if result.reason:
            errors.print(result.reason, markup=False)
    return 0 if all(result.status == "finished" for result in results) else 1


def _recommend(parsed: argparse.Namespace, rest: list[str]) -> None:
    from dataclasses import asdict

    from darec_search.export import load

    if parsed.top < 1:
        raise BadInput(f"--top {parsed.top}: must be at least 1")
    lines = [parsed.history] if parsed.history is not None else _lines(parsed.histories)
    histories = [[item.strip() for item in line.split(",") if item.strip()] for line in lines]
    found = load(parsed.model).recommend(histories, top=parsed.top)
    if parsed.json:
        _print_json(
            [
                {"history": history, "items": [asdict(item) for item in items]}
                for history, items in zip(histories, found, strict=True)
            ]
        )
        return
    for history, items in zip(histories, found, strict=True):
        _say(f"after {', '.join(history)}")
        for place, item in enumerate(items, 1):
            _say(f"  {place:2d}. {item.score:8.3f}  {item.id}  {item.title}")


def _lines(path: Path) -> list[str]:
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read ({error})") from error
    if not lines:
        raise BadInput(f"{path}: holds no history; write one a line, item ids separated by commas")
    return lines


def _evaluate(parsed: argparse.Namespace, rest: list[str]) -> None:
    from darec_search.evaluation import cutoff_table, segment_table
    from darec_search.export import load
    from trainer.data.dataset import Dataset

    cutoffs = _cutoffs(parsed.cutoffs)
    if parsed.per_user is not None and (parsed.per_user.is_dir() or not parsed.per_user.parent.is_dir()):
        raise BadInput(f"--per-user {parsed.per_user}: must be a file in a folder that exists")
    evaluation = load(parsed.model).evaluate(Dataset.open(parsed.data), parsed.split, cutoffs)
    if parsed.per_user is not None:
        evaluation.save_per_user(parsed.per_user)
    found = evaluation.document()
    if parsed.json:
        _print_json(found)
        return
    _say_metrics(found)
    console.print(cutoff_table(found, evaluation.cutoffs))
    console.print(segment_table(found))


def _say_metrics(found: dict[str, Any]) -> None:
    from darec_search.console import COLUMNS, NAMES

    figures = "  ".join(f"{NAMES[name]} {found[name]:.4f}" for name in COLUMNS)
    _say(f"{found['split']}, {found['users']:,} users: {figures}")


def _cutoffs(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    wrong = next((part for part in parts if not part.isdecimal() or int(part) < 1), None)
    if wrong is not None:
        raise BadInput(f"--cutoffs {text}: {wrong!r} is no whole number from 1; write them like 5,10,20")
    return [int(part) for part in parts]


if __name__ == "__main__":
    sys.exit(main())
