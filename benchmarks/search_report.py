"""What the runs of `search.py` say: tables of regret, paired differences to `ax_bayes`, and the goals set for it.

A lead is the regret of another sampler minus that of `ax_bayes` over the seeds that both ran: positive where `ax_bayes`
is better. Goals are judged one evaluation at a time and after 30 results, against every other sampler (the paper's
Algorithm 1 and random search among them) with at least five seeds in common.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from problems import PROBLEMS, draw
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from search import Run

OURS = "ax_bayes"
FEWEST = 5
"""Seeds in common that a comparison needs."""
MEASURED = ("landscape_synthetic", "landscape_scientific")


@dataclass(frozen=True)
class Setting:
    """One table: noise over the spread (None where it was measured), evaluations under way, results."""

    noise: float | None
    width: int
    n: int

    def __str__(self) -> str:
        noise = "measured noise" if self.noise is None else f"noise {self.noise:.0%}"
        return f"{noise}, {self.width} at a time, n = {self.n}"


@dataclass(frozen=True)
class Estimate:
    """Mean over seeds with its standard error."""

    mean: float
    stderr: float
    seeds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """From one value a seed."""
        stderr = float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")
        return cls(float(np.mean(values)), stderr, len(values))

    def __str__(self) -> str:
        return f"{self.mean:.2f} ± {self.stderr:.2f}"


@dataclass(frozen=True)
class Goal:
    """A goal and how far it is reached."""

    text: str
    reached: bool | None
    """None while runs are missing."""
    found: str


class Runs:
    """Runs of one version of each sampler, the last that was run, by setting, problem, sampler and seed."""

    def __init__(self, runs: Iterable[Run]) -> None:
        runs = list(runs)
        self.versions = {run.sampler: run.version for run in runs}
        self._cells: dict[tuple[Setting, str, str], dict[int, Run]] = {}
        for run in runs:
            if run.version == self.versions[run.sampler]:
                setting = Setting(run.noise, run.width, run.n)
                self._cells.setdefault((setting, run.problem, run.sampler), {})[run.seed] = run

    def settings(self) -> list[Setting]:
        """All settings: measured noise last, few at a time first."""
        found = {setting for setting, _, _ in self._cells}
        return sorted(found, key=lambda s: (s.noise is None, s.noise or 0.0, s.width, s.n))

    def problems(self, setting: Setting) -> list[str]:
        """Problems of a setting, in order of `PROBLEMS`."""
        return [name for name in PROBLEMS if any(key[:2] == (setting, name) for key in self._cells)]

    def samplers(self, setting: Setting) -> list[str]:
        """Samplers of a setting, ours first."""
        return sorted({key[2] for key in self._cells if key[0] == setting}, key=lambda name: (name != OURS, name))

    def regret(self, setting: Setting, problem: str, sampler: str) -> dict[int, float]:
        """Regret by seed."""
        return {seed: run.regret for seed, run in self._cells.get((setting, problem, sampler), {}).items()}

    def seconds(self, setting: Setting, sampler: str, problem: str | None = None) -> float:
        """Processor time of a suggestion, mean over runs."""
        cells = [cell for key, cell in self._cells.items() if (key[0], key[2]) == (setting, sampler)]
        if problem is not None:
            cells = [self._cells.get((setting, problem, sampler), {})]
        return float(np.mean([run.seconds for cell in cells for run in cell.values()] or [np.nan]))

    def pairs(self, setting: Setting, problem: str, sampler: str) -> list[tuple[float, float]]:
        """Regrets of `ax_bayes` and of another sampler on every seed that both ran."""
        ours, theirs = (self.regret(setting, problem, name) for name in (OURS, sampler))
        return [(ours[seed], theirs[seed]) for seed in sorted(ours.keys() & theirs.keys())]

    def lead(self, setting: Setting, problem: str, sampler: str) -> Estimate | None:
        """Of `ax_bayes` over another sampler; None without a seed in common."""
        pairs = self.pairs(setting, problem, sampler)
        return Estimate.of([theirs - ours for ours, theirs in pairs]) if pairs else None

    def leads(self, setting: Setting, problem: str) -> dict[str, Estimate]:
        """Over every sampler that can be judged, the best of them first."""
        leads = {name: self.lead(setting, problem, name) for name in self.samplers(setting) if name != OURS}
        enough = {name: lead for name, lead in leads.items() if lead is not None and lead.seeds >= FEWEST}
        return dict(sorted(enough.items(), key=lambda item: item[1].mean))


def report(runs: Iterable[Run], path: Path | None) -> None:
    """Print everything; write it to `path` too, if there is one."""
    known, console = Runs(runs), Console(width=170)
    for setting in known.settings():
        console.print(_table(known, setting), "")
    shares = {name: _found(known, name) for name in MEASURED}
    for name, of_samplers in shares.items():
        if of_samplers:
            console.print(_shares_table(name, of_samplers))
    goals = [*_depth_smooth(known), *_unsmooth(known), *_never_behind(known), _noisy(known)]
    goals += [_planted(known), _fast(known)]
    for goal in goals:
        state = {True: "[green]reached[/]", False: "[red]not reached[/]", None: "[yellow]runs missing[/]"}[goal.reached]
        console.print(f"{state}: {goal.text}: {goal.found}", highlight=False)
    if path is not None:
        rows = ",\n".join(json.dumps(row) for row in _rows(known))
        judged = ",\n".join(json.dumps(asdict(goal)) for goal in goals)
        head = f'"versions": {json.dumps(known.versions)},\n"found": {json.dumps(shares)}'
        path.write_text(f'{{{head},\n"goals": [\n{judged}],\n"runs": [\n{rows}]}}\n')


def _table(runs: Runs, setting: Setting) -> Table:
    problems = runs.problems(setting)
    table = Table("", *problems, "CPU s", title=f"Regret, and lead of {OURS}: {setting}", show_lines=True)
    for sampler in runs.samplers(setting):
        cells = []
        for problem in problems:
            regrets = list(runs.regret(setting, problem, sampler).values())
            lead = runs.lead(setting, problem, sampler) if sampler != OURS else None
            of_ours = "" if lead is None else f"\n{lead.mean:+.2f} ± {lead.stderr:.2f}"
            cells.append(f"{Estimate.of(regrets)} ({len(regrets)}){of_ours}" if regrets else "")
        table.add_row(sampler, *cells, f"{runs.seconds(setting, sampler):.3f}")
    return table


def _rows(runs: Runs) -> Iterable[dict[str, object]]:
    for setting in runs.settings():
        for problem in runs.problems(setting):
            for sampler in runs.samplers(setting):
                regrets = list(runs.regret(setting, problem, sampler).values())
                if regrets:
                    lead = runs.lead(setting, problem, sampler) if sampler != OURS else None
                    yield {
                        **asdict(setting),
                        "problem": problem,
                        "sampler": sampler,
                        "regret": _numbers(Estimate.of(regrets)),
                        "lead": None if lead is None else _numbers(lead),
                        "seconds": round(runs.seconds(setting, sampler, problem), 4),
                    }


def _numbers(estimate: Estimate) -> list[float | int | None]:
    """Mean, standard error (None of one seed) and seeds."""
    stderr = None if np.isnan(estimate.stderr) else round(estimate.stderr, 4)
    return [round(estimate.mean, 4), stderr, estimate.seeds]


def _found(runs: Runs, problem: str) -> dict[str, list[float]]:
    """By sampler: seeds, and the shares that found the best, and one within one and two standard errors of it.

    Within the standard error of the difference of two measured means, that is.
    """
    setting, error = Setting(None, 1, 30), _error(problem)
    shares = {}
    for sampler in runs.samplers(setting):
        regrets = np.array(list(runs.regret(setting, problem, sampler).values()))
        if len(regrets):
            within = [round(float((regrets <= errors * error + 1e-4).mean()), 3) for errors in (0, 1, 2)]
            shares[sampler] = [len(regrets), *within]
    return shares


def _error(problem: str) -> float:
    """Standard error of the difference of two measured means, as regret."""
    drawn = draw(problem, 0)
    return math.sqrt(2) * drawn.stderr / (drawn.optimum - drawn.mean)


def _shares_table(problem: str, shares: dict[str, list[float]]) -> Table:
    columns = ("seeds", "the best", "within 1 s.e.", "within 2 s.e.")
    table = Table("", *columns, title=f"{problem}: share of searches that recommend …")
    for sampler, (seeds, *rest) in shares.items():
        table.add_row(sampler, f"{seeds:.0f}", *(f"{share:.2f}" for share in rest))
    return table


def _depth_smooth(runs: Runs) -> Iterable[Goal]:
    for problem in ("smooth", "smooth_weights"):
        text = f"{problem}: regret at most 0.6 × the best peer's"
        peer, setting = _best_peer(runs, problem)
        if peer is None:
            yield Goal(text, None, "no seeds in common")
        else:
            ours, theirs = np.mean(runs.pairs(setting, problem, peer), axis=0)
            yield Goal(text, bool(ours <= 0.6 * theirs), f"{ours / theirs:.2f} × {theirs:.2f} of {peer}")


def _unsmooth(runs: Runs) -> Iterable[Goal]:
    for problem in ("rough", "nk"):
        yield _ahead(runs, problem, f"{problem}: ahead of the best peer by 0.1", 0.1)


def _never_behind(runs: Runs) -> Iterable[Goal]:
    for problem in PROBLEMS:
        yield _ahead(runs, problem, f"{problem}: not behind the best peer by more than the standard error", None)


def _ahead(runs: Runs, problem: str, text: str, least: float | None) -> Goal:
    """A lead of `least`, or none that is worse than minus its standard error."""
    peer, setting = _best_peer(runs, problem)
    if peer is None:
        return Goal(text, None, "no seeds in common")
    lead = runs.leads(setting, problem)[peer]
    reached = lead.mean >= (-lead.stderr if least is None else least)
    return Goal(text, reached, f"lead {lead.mean:+.3f} ± {lead.stderr:.3f} over {peer} ({lead.seeds} seeds)")


def _best_peer(runs: Runs, problem: str) -> tuple[str | None, Setting]:
    """Over whom the lead is smallest, and where the goals look."""
    setting = Setting(None if problem in MEASURED else 0.3, 1, 30)
    return next(iter(runs.leads(setting, problem)), None), setting


def _noisy(runs: Runs) -> Goal:
    """At noise above the spread, on the mean over the problems that both ran."""
    setting, text = Setting(1.2, 1, 30), "at 120 % noise ahead of the best peer by 0.1 on the mean over problems"
    leads: dict[str, list[Estimate]] = {}
    for problem in runs.problems(setting):
        for peer, lead in runs.leads(setting, problem).items():
            leads.setdefault(peer, []).append(lead)
    if not leads:
        return Goal(text, None, "no seeds in common")
    peer, worst = min(leads.items(), key=lambda item: np.mean([lead.mean for lead in item[1]]))
    mean = float(np.mean([lead.mean for lead in worst]))
    stderr = float(np.linalg.norm([lead.stderr for lead in worst]) / len(worst))
    return Goal(text, mean >= 0.1, f"lead {mean:+.3f} ± {stderr:.3f} over {peer} on {len(worst)} problems")


def _planted(runs: Runs) -> Goal:
    """On the seeds that both ran; a draw is not reached."""
    problem, setting = MEASURED[0], Setting(None, 1, 30)
    text = f"{problem}: the best, or one within two standard errors of it, found more often than by any peer"
    limit = 2 * _error(problem) + 1e-4
    gaps = {}
    for peer in runs.leads(setting, problem):
        ours, theirs = (np.array(runs.pairs(setting, problem, peer)) <= limit).mean(0)
        gaps[peer] = (float(ours), float(theirs))
    if not gaps:
        return Goal(text, None, "no seeds in common")
    peer, (ours, theirs) = min(gaps.items(), key=lambda item: item[1][0] - item[1][1])
    seeds = len(runs.pairs(setting, problem, peer))
    return Goal(text, ours > theirs, f"{ours:.2f} against {theirs:.2f} of {peer} ({seeds} seeds)")


def _fast(runs: Runs) -> Goal:
    seconds = runs.seconds(Setting(0.3, 1, 30), OURS, "smooth_weights")
    text = "a suggestion in under 0.5 s at n = 30 (36 bits and three loss weights, processor time)"
    return Goal(text, None if np.isnan(seconds) else seconds < 0.5, f"{seconds:.2f} s")
