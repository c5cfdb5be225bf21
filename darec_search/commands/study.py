"""Commands about a study: `run`, `status`, `report`, `promote`, `export`, `sync`."""

from __future__ import annotations

import argparse
from pathlib import Path

from darec_search.commands.check import check, load_named
from darec_search.commands.output import console, print_json, say
from trainer.storage import is_url


def run(parsed: argparse.Namespace, rest: list[str]) -> None:
    """The main job."""
    if parsed.dry_run:
        from darec_search.estimate import measured

        check(parsed, rest, None if parsed.no_timing else measured)
        return
    from darec_search import pipeline
    from darec_search.console import ConsoleObserver, print_result
    from darec_search.controller import stopping_on_signals

    config = load_named(parsed)
    with stopping_on_signals():
        with ConsoleObserver(console, config.resources.slots) as observer:
            result = pipeline.run(config, observer)
        print_result(console, result)
        _print_example(result.model, config.data.path)


def _print_example(model: Path, data: str) -> None:
    """One recommendation in titles, so that a first run ends with what it is all for."""
    from darec_search.export import load
    from trainer.data.dataset import Dataset

    recommender = load(model)
    dataset = Dataset.open(data)
    history = [dataset.item_ids[item] for item in dataset.train[0][-3:]]
    console.print()
    say("\n  ".join(["After", *(f"“{title}”" for title in recommender.titles(history))]))
    say("it recommends")
    for place, item in enumerate(recommender.recommend([history], top=5)[0], 1):
        say(f"  {place}. {item.title}")


def status(parsed: argparse.Namespace, rest: list[str]) -> None:
    """The trials of a study."""
    from darec_search.console import status_document, status_table
    from darec_search.study import Study

    study = Study.load(parsed.folder)
    if parsed.json:
        print_json(status_document(study))
    else:
        console.print(status_table(study))


def report(parsed: argparse.Namespace, rest: list[str]) -> None:
    """Write report.html, and effects.json, which it draws."""
    from darec_search.insight import write_insight
    from darec_search.report import write_report
    from darec_search.study import Study

    study = Study.load(parsed.folder)
    write_insight(study)
    say(str(write_report(study)))


def promote(parsed: argparse.Namespace, rest: list[str]) -> None:
    """Promote what the search has found so far."""
    from darec_search import pipeline
    from darec_search.console import ConsoleObserver, print_result
    from darec_search.controller import stopping_on_signals
    from darec_search.study import Study

    study = Study.load(parsed.folder)
    with stopping_on_signals():
        with ConsoleObserver(console, study.config.resources.slots) as observer:
            result = pipeline.promote(study, observer)
        print_result(console, result)


def export(parsed: argparse.Namespace, rest: list[str]) -> None:
    """The best architecture and its model as a folder."""
    from darec_search.export import export
    from darec_search.study import Study

    exported = export(Study.load(parsed.folder), parsed.to, parsed.format)
    say(f"{exported.card.architecture} written to {parsed.to}")
    if exported.verified is not None:
        say(f"verified: {exported.verified}")


def sync(parsed: argparse.Namespace, rest: list[str]) -> None:
    """Replay a study folder, or a folder of trainings, into MLflow."""
    from darec_search.study import Study
    from darec_search.tracking import TRACKERS
    from darec_search.tracking.trainings import Trainings

    folder, shown = Path(parsed.folder), None
    if not is_url(parsed.folder) and not (folder / "environment.json").exists() and Trainings(folder).configs():
        shown = Trainings(folder)
    synced = TRACKERS["mlflow"](shown or Study.load(parsed.folder), parsed.tracking_uri).sync()
    say(f"{synced.runs} runs ({synced.created} new, {synced.updated} changed) in {synced.location}")
