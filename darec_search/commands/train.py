"""`train`: the trainings of a run file."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from darec_search.commands.output import console, errors, say, say_metrics

if TYPE_CHECKING:
    from trainer.data.dataset import Split


def train(parsed: argparse.Namespace, rest: list[str]) -> int:
    """Train what the file says; the exit code."""
    from darec_search.controller import stopping_on_signals
    from darec_search.runfile import load_run_file
    from darec_search.sweep import inspect_runs, train_all, trainings
    from darec_search.sweep_console import SweepObserver, print_results
    from darec_search.sweep_results import FILE, summarise
    from darec_search.tracking.mirror import mirrored

    whole = load_run_file(parsed.run, parsed.set)
    file = whole.only([name.strip() for name in parsed.only.split(",")]) if parsed.only else whole
    inspect_runs(file).refuse()
    planned = trainings(file, parsed.out)
    split: Split | None = "test" if parsed.test else "validation" if file.sweep else None
    with stopping_on_signals(), mirrored(parsed.out, parsed.mlflow) as changed:
        with SweepObserver(console, len(planned), changed) as observer:
            results = list(train_all(planned, split, observer))
        # All that stands in the folder, also what another process did there.
        summary = summarise(whole, parsed.out) if file.sweep else None
    if summary is not None:
        print_results(console, summary)
        say(str(parsed.out / FILE))
    else:
        say(f"{results[0].status}: {parsed.out / 'result.json'}")
        if parsed.test and results[0].status == "finished":
            say_metrics(json.loads((parsed.out / "metrics.json").read_text(encoding="utf-8")))
    for result in results:
        if result.reason:
            errors.print(result.reason, markup=False)
    return 0 if all(result.status == "finished" for result in results) else 1
