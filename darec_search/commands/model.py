"""Commands about an exported model: `recommend`, `evaluate`."""

from __future__ import annotations

import argparse
from pathlib import Path

from darec_search.commands.output import console, print_json, say, say_metrics
from trainer.errors import BadInput


def recommend(parsed: argparse.Namespace, rest: list[str]) -> None:
    """The best next items after each history."""
    from dataclasses import asdict

    from darec_search.export import load

    if parsed.top < 1:
        raise BadInput(f"--top {parsed.top}: must be at least 1")
    lines = [parsed.history] if parsed.history is not None else _lines(parsed.histories)
    histories = [[item.strip() for item in line.split(",") if item.strip()] for line in lines]
    found = load(parsed.model).recommend(histories, top=parsed.top)
    if parsed.json:
        print_json(
            [
                {"history": history, "items": [asdict(item) for item in items]}
                for history, items in zip(histories, found, strict=True)
            ]
        )
        return
    for history, items in zip(histories, found, strict=True):
        say(f"after {', '.join(history)}")
        for place, item in enumerate(items, 1):
            say(f"  {place:2d}. {item.score:8.3f}  {item.id}  {item.title}")


def _lines(path: Path) -> list[str]:
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read ({error})") from error
    if not lines:
        raise BadInput(f"{path}: holds no history; write one a line, item ids separated by commas")
    return lines


def evaluate(parsed: argparse.Namespace, rest: list[str]) -> None:
    """Metrics of an exported model on a dataset."""
    from darec_search.evaluation import cutoff_table, segment_table
    from darec_search.export import load
    from trainer.data.dataset import Dataset

    cutoffs = _cutoffs(parsed.cutoffs)
    if parsed.per_user is not None and (parsed.per_user.is_dir() or not parsed.per_user.parent.is_dir()):
        raise BadInput(f"--per-user {parsed.per_user}: must be a file in a folder that exists")
    model, dataset = load(parsed.model), Dataset.open(parsed.data)
    evaluation = model.evaluate(dataset, parsed.split, cutoffs)
    if parsed.split == "test" and (parsed.model.absolute().parent / "environment.json").exists():
        from darec_search.final_models import record_opening

        record_opening(parsed.model.absolute().parent, "evaluate", dataset.fingerprint, {"best": model.card.sha256})
    if parsed.per_user is not None:
        evaluation.save_per_user(parsed.per_user)
    found = evaluation.document()
    if parsed.json:
        print_json(found)
        return
    say_metrics(found)
    console.print(cutoff_table(found, evaluation.cutoffs))
    console.print(segment_table(found))


def _cutoffs(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    wrong = next((part for part in parts if not part.isdecimal() or int(part) < 1), None)
    if wrong is not None:
        raise BadInput(f"--cutoffs {text}: {wrong!r} is no whole number from 1; write them like 5,10,20")
    return [int(part) for part in parts]
