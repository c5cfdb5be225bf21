"""Command `audit`: does the search's part of the data tell the truth?"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from darec_search.commands.output import console, errors, print_json, say
from trainer.errors import BadInput

if TYPE_CHECKING:
    from darec_search.audit import Audit
    from darec_search.study import Study


def audit(parsed: argparse.Namespace, rest: list[str]) -> None:
    """Compare scores on the search's part of the data with those on all data."""
    from darec_search.audit import audit as compare
    from darec_search.study import Study

    study = Study.load(parsed.folder)
    if parsed.train is not None:
        if parsed.train < 1:
            raise BadInput(f"--train {parsed.train}: must be at least 1")
        _train(study, parsed.train)
    found = compare(study)
    if parsed.json:
        print_json(found.model_dump(mode="json"))
    else:
        _show(found)


def _train(study: Study, count: int) -> None:
    from darec_search import audit as auditing
    from darec_search import pipeline, runners
    from darec_search.console import ConsoleObserver
    from darec_search.controller import stopping_on_signals
    from darec_search.promotion import run_missing

    study.dataset()
    with stopping_on_signals(), pipeline.alone(study), ConsoleObserver(errors, study.config.resources.slots) as shown:
        specs = auditing.plan(study, count)
        done = [result for spec in specs if (result := study.trial(spec.id).result) is not None]
        shown.stage("audit: designs of the search on all users", len(specs), done)
        if len(done) < len(specs):
            with runners.create(study) as runner:
                run_missing(study, runner, specs, shown.event)


def _show(found: Audit) -> None:
    from rich.table import Table

    title = f"{found.subset.users_fraction:g} of the users, {found.subset.epochs} epochs, against all users, "
    table = Table(title=f"{title}{found.full.epochs} epochs", title_justify="left")
    for heading in ("architecture", "λ", "MRR, part", "seeds", "MRR, all", "seeds"):
        table.add_column(heading, justify="left" if heading in ("architecture", "λ") else "right")
    for pair in found.pairs:
        weights = " ".join(f"{name} {value:g}" for name, value in pair.weights.items())
        values = (f"{pair.subset:.4f}", str(pair.subset_seeds), f"{pair.full:.4f}", str(pair.full_seeds))
        table.add_row(pair.architecture, weights, *values)
    console.print(table)
    if found.spearman is not None and found.kendall is not None:
        say(f"Spearman's ρ {found.spearman:.2f}, Kendall's τ {found.kendall:.2f}, p {found.p_value:.2g} for chance.")
    if found.failed:
        say(f"{found.failed} trainings on all users gave no value.")
    say(found.advice)
