"""`darec-search`: parse, call, print.

Exit codes: 0 done · 2 bad input, nothing spent · 3 stopped with work left (run again to resume) · 1 anything else.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from darec_search.commands import audit as auditing
from darec_search.commands import check as checking
from darec_search.commands import data as datasets
from darec_search.commands import model as models
from darec_search.commands import reproduce as reproducing
from darec_search.commands import study as studies
from darec_search.commands import train as training
from darec_search.commands.output import errors
from darec_search.credentials import redact
from darec_search.lease import LeaseLost
from trainer.errors import BadInput, NoSpace, no_space_told
from trainer.storage import StorageError

# Set before Ray, MLflow and Hugging Face are imported by the commands.
for _name, _value in {
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
}.items():
    os.environ.setdefault(_name, _value)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    from darec_search.console import set_up_logging

    parsed, rest = _parser().parse_known_args(arguments)
    if rest and parsed.command is not datasets.prepare:
        errors.print(f"darec-search: unknown argument {rest[0]}; see `darec-search --help`", markup=False)
        return 2
    set_up_logging(errors, parsed.verbose)
    try:
        with no_space_told(Path.cwd()):
            return int(parsed.command(parsed, rest) or 0)
    except BadInput as error:
        errors.print(f"darec-search: {redact(str(error))}", markup=False, highlight=False, soft_wrap=True)
        return 2
    except LeaseLost as error:
        errors.print(f"darec-search: {error}", markup=False, highlight=False, soft_wrap=True)
        return 3
    except KeyboardInterrupt:
        errors.print("darec-search: stopped; nothing finished is lost, the same command goes on", markup=False)
        return 3
    except NoSpace as error:
        errors.print(f"darec-search: {error}; nothing finished is lost", markup=False, soft_wrap=True)
        return 3
    except Exception as error:
        if parsed.verbose:
            raise
        logging.getLogger(__name__).debug("failed", exc_info=True)
        kind = "" if isinstance(error, StorageError) else f"{type(error).__name__}: "
        message = f"darec-search: {kind}{redact(str(error))} (--verbose shows where)"
        errors.print(message, markup=False, highlight=False, soft_wrap=True)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="darec-search", description=__doc__.splitlines()[2])
    parser.add_argument("-v", "--verbose", action="store_true", help="log lines and tracebacks")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    data = commands.add_parser("data", help="prepare and show datasets").add_subparsers(required=True)
    prepare = data.add_parser("prepare", help="raw data to a dataset folder", add_help=False)
    prepare.add_argument("--format", help="amazon, recbole, recformer, synthetic, table or unisrec")
    prepare.add_argument("--out", help="dataset folder to write, or its URL")
    prepare.add_argument("-h", "--help", action="store_true", help="show this and the format's own options")
    _verbose(prepare)
    prepare.set_defaults(command=datasets.prepare, parser=prepare)
    show = _command(data, "show", datasets.show, "figures, fingerprint, warnings")
    show.add_argument("folder", help="dataset folder, or its URL")
    _json(show)

    for name, command, text in (
        ("check", checking.check, "validate a study or run file and say what would run; no training"),
        ("run", studies.run, "the main job: search, promote, export; started again it resumes"),
    ):
        study = _command(commands, name, command, text)
        what = "study or run file" if name == "check" else "study file"
        study.add_argument("study", type=Path, help=f"{what} (YAML)")
        study.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="override, such as a.b=c")
        study.add_argument("--address", help="Ray cluster to join")
        _json(study)
    study.add_argument(
        "--dry-run", action="store_true", help="as `check`, then time real steps and say what it would take and cost"
    )
    study.add_argument("--no-timing", action="store_true", help="with --dry-run: time nothing")

    status = _command(commands, "status", studies.status, "the trials of a study")
    report = _command(commands, "report", studies.report, "write report.html")
    promote = _command(commands, "promote", studies.promote, "promote what the search has found so far")
    export = _command(commands, "export", studies.export, "the best architecture and its model as a folder")
    sync = _command(commands, "sync", studies.sync, "replay a folder of a study or of trainings into MLflow")
    audit = _command(commands, "audit", auditing.audit, "does the search's part of the data order designs as all do?")
    for of_study in (status, report, promote, export, sync, audit):
        of_study.add_argument("folder", help="study folder, or its URL")
    _json(status)
    _json(audit)
    audit.add_argument("--train", type=int, metavar="N", help="designs of the search that audits train on all users")
    export.add_argument("--to", type=Path, required=True, help="folder to write")
    export.add_argument(
        "--format",
        choices=("torch", "onnx-scores", "card"),
        default="torch",
        help="a folder that recommends (the default), an ONNX graph of all items' scores, or the card alone",
    )
    sync.add_argument("--tracking-uri", help="MLflow; the study's own when absent")

    train = _command(commands, "train", training.train, "the trainings of a run file, without a search; resumes")
    train.add_argument("run", type=Path, help="run file (YAML)")
    train.add_argument("--out", type=Path, required=True, help="folder of the run, or of all runs")
    train.add_argument("--only", metavar="NAME,…", help="some of the file's runs")
    train.add_argument("--test", action="store_true", help="measure every model on the test split too, once")
    _mlflow(train)
    train.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="override")

    reproduce = _command(
        commands, "reproduce", reproducing.reproduce, "the paper's tables and figures on your datasets; resumes"
    )
    reproduce.add_argument("what", metavar="WHAT", help="table2, fig5 … fig10, fig13, fig14, table4, or all")
    reproduce.add_argument("--data", required=True, nargs="+", metavar="DIR", help="dataset folders")
    reproduce.add_argument("--scale", choices=("small", "full", "tiny"), default="small", help="how large (small)")
    reproduce.add_argument("--out", type=Path, help="results folder (runs/reproduce/SCALE)")
    reproduce.add_argument("--only", metavar="NAME,…", help="some of Table 2's methods")
    reproduce.add_argument("--runner", choices=("ray", "local"), default="ray", help="local: one at a time, no Ray")
    reproduce.add_argument("--address", help="Ray cluster to join")
    reproduce.add_argument("--lanes", type=int, metavar="N", help="trainings at a time; what this machine has room for")
    _mlflow(reproduce)
    reproduce.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="override")
    reproduce.add_argument("--dry-run", action="store_true", help="time real steps and say what it would take")
    reproduce.add_argument("--price-per-hour", type=float, metavar="X", help="with --dry-run: of one training's hour")
    _json(reproduce)

    recommend = _command(commands, "recommend", models.recommend, "the best next items after a history")
    recommend.add_argument("model", type=Path, help="exported folder")
    recommend.add_argument("--history", help="item ids or titles, oldest first, separated by commas")
    recommend.add_argument("--title", action="append", help="title of an item, oldest first; once for each item")
    recommend.add_argument(
        "--histories", type=Path, metavar="FILE", help="histories as csv, tsv, jsonl, parquet or lines"
    )
    recommend.add_argument(
        "--user", metavar="ID", help="who it is, if trained on; with --data the history is read there"
    )
    recommend.add_argument("--data", metavar="DIR", help="dataset folder, or its URL, that holds the user's history")
    recommend.add_argument("--top", type=int, default=10, help="items per history (10)")
    recommend.add_argument("--exclude-seen", action="store_true", help="leave out the items of the history")
    recommend.add_argument("--out", type=Path, metavar="FILE", help="csv, tsv, jsonl or parquet file to write")
    _json(recommend)

    serve = _command(commands, "serve", models.serve, "recommendations of an exported model over HTTP")
    serve.add_argument("model", type=Path, help="exported folder")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen at (this machine alone)")
    serve.add_argument("--port", type=int, default=8000, help="port to listen at (8000)")

    evaluate = _command(commands, "evaluate", models.evaluate, "metrics of an exported model on a dataset")
    evaluate.add_argument("model", type=Path, help="exported folder")
    evaluate.add_argument("data", help="dataset folder, or its URL")
    evaluate.add_argument("--split", choices=("test", "validation"), default="test")
    evaluate.add_argument("--cutoffs", default="10", metavar="K,K,…", help="lengths of top lists (10)")
    evaluate.add_argument("--exclude-seen", action="store_true", help="leave out the items of the history")
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


def _mlflow(parser: argparse.ArgumentParser) -> None:
    text = "log every training to MLflow, in mlflow.db of the output folder if no URI is given"
    parser.add_argument("--mlflow", nargs="?", const="", metavar="URI", help=text)


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")


if __name__ == "__main__":
    sys.exit(main())
