"""Does the search's part of the data tell the truth? The order of designs on it against that on all data.

Pairs of scores come from the designs that were trained both ways: the promotion's full-data models, and designs of the
search that an audit trains on all data for the purpose. `audit.json` has the pairs, their rank correlation with its
uncertainty, and advice on `data.search_fraction`.
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict

import numpy as np
from pydantic import Field

from darec_search.arms import search_values
from darec_search.fidelities import full_fidelity, trial_fidelity
from darec_search.promotion import next_number
from darec_search.rank_agreement import FEWEST, Agreement, agreement
from darec_search.space import Point
from darec_search.study import Study, Trial
from darec_search.trial import Fidelity, TrialSpec, make_spec
from darec_search.variants import VARIANTS
from trainer.architecture import Architecture
from trainer.config import Section
from trainer.errors import BadInput

_GOOD = 0.5
"""A rank correlation that leaves a search something to go by."""
_MANY = 12
"""Pairs from which an interval is narrow enough to act on."""


class Pair(Section):
    """One design, trained both ways; values are mean validation MRRs."""

    architecture: str
    weights: dict[str, float]
    subset: float = Field(description="On the search's part of the data.")
    subset_seeds: int
    full: float = Field(description="On all data.")
    full_seeds: int


class Audit(Section):
    """`audit.json`."""

    subset: Fidelity = Field(description="What a trial of the search gets.")
    full: Fidelity = Field(description="What the winner gets.")
    pairs: tuple[Pair, ...] = Field(description="Best on all data first.")
    spearman: float | None = Field(description="Spearman's rank correlation of both scores.")
    interval: tuple[float, float] | None = Field(description="Its 90 % interval; None for too few pairs.")
    kendall: float | None = Field(description="Kendall's rank correlation.")
    p_value: float | None = Field(description="Of such a Spearman correlation or a higher one by chance.")
    loss: float | None = Field(description="What the subset's best design lacks to the best of these, on all data.")
    failed: int = Field(description="Trainings of audits that gave no value.")
    advice: str = Field(description="On `data.search_fraction`.")


def audit(study: Study) -> Audit:
    """Compare what the study has trained both ways; writes `audit.json`.

    Raises:
        BadInput: if the search trains on all data as the winner is.
    """
    subset, full = _fidelities(study)
    on_part, on_all = _values(study, subset), _values(study, full)
    _add_final(study, on_all)
    pairs = [
        Pair(
            architecture=Architecture(point.bits).text,
            weights=dict(point.weights),
            subset=statistics.fmean(on_part[point]),
            subset_seeds=len(on_part[point]),
            full=statistics.fmean(on_all[point]),
            full_seeds=len(on_all[point]),
        )
        for point in on_all
        if point in on_part
    ]
    pairs.sort(key=lambda pair: -pair.full)
    found = agreement([pair.subset for pair in pairs], [pair.full for pair in pairs])
    audited = Audit(
        subset=subset,
        full=full,
        pairs=tuple(pairs),
        spearman=found.spearman,
        interval=found.interval,
        kendall=found.kendall,
        p_value=found.p_value,
        loss=found.loss,
        failed=sum(trial.result is not None and trial.objective is None for trial in _audited(study)),
        advice=advice(found, subset.users_fraction),
    )
    study.write("audit.json", audited.model_dump_json(indent=2))
    return audited


def plan(study: Study, count: int) -> list[TrialSpec]:
    """The trainings on all data of an audit of `count` further designs, those of earlier audits among them.

    They are spread evenly over the order that the search's part of the data tells. Recorded at once, so that an audit
    that was stopped goes on with the same designs.

    Raises:
        BadInput: if the search trains on all data as the winner is, or has no finished trial.
    """
    _, full = _fidelities(study)
    asked = [trial.spec for trial in _audited(study)]
    known = {*(spec.point for spec in asked), *_values(study, full)}
    scores = search_values(study, "mrr")
    if not scores:
        raise BadInput(f"{study.folder}: no trial of the search has finished; let it search first")
    left = [point for point in sorted(scores, key=lambda point: -scores[point]) if point not in known]
    wanted = min(max(0, count - len(asked)), len(left))
    chosen = [left[place] for place in np.linspace(0, len(left) - 1, wanted).round().astype(int)] if left else []
    first = next_number(study)
    for number, point in enumerate(chosen, first):
        spec = make_spec(study.id, number, "audit", point, study.config.seed, full, f"audit-{len(asked) + 1}")
        asked.append(study.request(spec).spec)
    return asked


def advice(found: Agreement, fraction: float) -> str:
    """What the agreement says about `data.search_fraction`, in words.

    Args:
        found: of scores on a part of the users with scores on all.
        fraction: the part, b.
    """
    more = f"train more designs on all data: `darec-search audit DIR --train {_MANY}`"
    if found.n < FEWEST or found.spearman is None or found.interval is None:
        return f"{found.n} designs trained both ways say next to nothing; {more}."
    low, high = found.interval
    shown = f"ρ = {found.spearman:.2f}, 90 %: {low:.2f} to {high:.2f}, from {found.n} designs"
    raised = f"raise `data.search_fraction` from {fraction:g} to {min(1.0, 2 * fraction):g}, or `search.epochs`"
    if low >= _GOOD:
        return f"The search's part of the data orders designs much as all data do ({shown}); {fraction:g} may stay."
    if high < _GOOD:
        return f"The search's part of the data does not order designs as all data do ({shown}); {raised}."
    if found.n >= _MANY:
        return f"It is not sure that the search's part of the data orders designs as all data do ({shown}); {raised}."
    return f"That cannot be told yet ({shown}); {more}."


def _fidelities(study: Study) -> tuple[Fidelity, Fidelity]:
    subset, full = trial_fidelity(study.config), full_fidelity(study.config)
    if subset == full:
        raise BadInput(f"{study.folder}: the search trains on all data already; there is nothing to compare")
    return subset, full


def _values(study: Study, fidelity: Fidelity) -> dict[Point, list[float]]:
    """Validation MRRs of the searched model's designs at a fidelity."""
    found: dict[Point, list[float]] = defaultdict(list)
    for trial in study.trials():
        if trial.spec.fidelity == fidelity and not trial.spec.variant and trial.objective is not None:
            found[trial.spec.point].append(trial.objective)
    return dict(found)


def _add_final(study: Study, values: dict[Point, list[float]]) -> None:
    """The winner's run on all data, which is no trial; with a prior of its own it is another model."""
    result = study.final_result()
    file, ran = study.folder / "promotion.json", study.folder / "final" / "run.json"
    if result is None or result.objective is None or not file.exists():
        return
    if json.loads(ran.read_text(encoding="utf-8"))["model"].get("prior") and study.config.model.prior is None:
        return
    promotion = json.loads(file.read_text(encoding="utf-8"))
    best = next(entry for entry in promotion["candidates"] if entry["arm"] == promotion["winner"])
    if best["arm"] not in VARIANTS:
        values.setdefault(Point(tuple(best["bits"]), best["weights"]), []).append(result.objective)


def _audited(study: Study) -> list[Trial]:
    full = full_fidelity(study.config)
    return [trial for trial in study.trials() if trial.spec.stage == "audit" and trial.spec.fidelity == full]
