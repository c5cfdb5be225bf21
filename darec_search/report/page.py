"""report.html: one page that needs nothing else, light and dark, on a desk and on a phone."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from darec_search.credentials import redact
from darec_search.insight import Insight
from darec_search.report.drawing import inline_svg, save
from darec_search.report.facts import NAMES, Facts, Sentence, gather, headline, sentence, verdict
from darec_search.report.pictures import pictures
from darec_search.report.tables import (
    audit,
    cost_table,
    decision,
    effects_table,
    interactions,
    retests_table,
    search_table,
    timeline_table,
    weights_table,
)
from darec_search.study import Study, Trial, best_trial
from trainer.architecture import Architecture

_KINDS = {"serial": "serial", "parallel": "parallel"}
_STAGES = {"soft": "loss weights", "accent": "architecture", "bad": "without a result"}
_TIMES = {
    "soft": "loss weights",
    "accent": "architecture",
    "serial": "re-test",
    "parallel": "all users",
    "bad": "failed",
}


def write_report(study: Study) -> Path:
    """Write report.html and, as PNG and SVG files in report/, its pictures, at any stage of a study.

    Returns:
        The path of report.html.
    """
    facts = gather(study)
    figures = pictures(facts)
    folder = study.folder / "report"
    folder.mkdir(exist_ok=True)
    for name, figure in figures.items():
        save(figure, folder / f"{name}.png")
        save(figure, folder / f"{name}.svg")
    study.publish("report")
    return study.write("report.html", _page(facts, figures))


def _page(facts: Facts, figures: Mapping[str, Figure]) -> str:
    style = resources.files("darec_search.report").joinpath("style.css").read_text(encoding="utf-8")
    name = escape(facts.study.config.name)
    body = [
        _header(facts),
        _tiles(facts),
        _figures(facts, figures),
        _timeline(facts, figures),
        _trials(facts),
        _where(facts),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{name} · darec-search</title><style>\n{style}</style></head>\n"
        f"<body><main>\n{''.join(body)}{_footer(facts.study)}</main></body></html>\n"
    )


def _header(facts: Facts) -> str:
    first = headline(facts)
    leader = f'<p class="architecture">{_letters(facts.leader)}</p>' if facts.leader else ""
    weights = facts.winner.weights if facts.winner else {}
    lambdas = f'<p class="over">{escape(_weights_text(weights))}</p>' if weights else ""
    return (
        f'<p class="over">Study {escape(facts.study.config.name)}</p><h1>{escape(first.text)}</h1>'
        f'{leader}{lambdas}<ul class="verdict">{"".join(_sentence(s) for s in verdict(facts))}</ul>\n'
    )


def _sentence(sentence: Sentence) -> str:
    return f'<li class="{sentence.tone}">{escape(sentence.text)}</li>'


def _tiles(facts: Facts) -> str:
    best = best_trial(facts.searched)
    costs = [result.cost for _, result in facts.ended] + ([facts.final.cost] if facts.final else [])
    finished = sum(trial.objective is not None for trial in facts.trials)
    tiles = {
        "trials finished": f"{finished} of {len(facts.trials)}",
        "best validation MRR": f"{best.objective:.4f}" if best else "–",
        "test MRR": f"{facts.test['mrr']:.4f}" if "mrr" in facts.test else "–",
        "training time": _duration(sum(cost.wall_s for cost in costs)),
        "CPU time": _duration(sum(cost.cpu_s for cost in costs)),
        "GPU time": _duration(sum(cost.gpu_s for cost in costs)),
    }
    for title, spent in (("CPU time", any(c.cpu_s for c in costs)), ("GPU time", any(c.gpu_s for c in costs))):
        if not spent:
            del tiles[title]
    if facts.ledger.limit is not None or facts.ledger.price is not None:
        tiles["spent"] = escape(facts.ledger.text)
    return f'<dl class="tiles">{"".join(f"<div><dt>{k}</dt><dd>{v}</dd></div>" for k, v in tiles.items())}</dl>\n'


def _figures(facts: Facts, figures: Mapping[str, Figure]) -> str:
    """Two columns on a desk, one below the other on a phone."""
    which = "The winner's architecture" if facts.winner else "The leading architecture"
    left = [
        _test_table(facts),
        _search(facts, figures),
        _weights(facts, figures),
        _cost(facts, figures),
    ]
    right = [
        _retests(facts, figures),
        _effects(facts, figures),
        _section(figures, "architecture", which, "Layers from the input (L0) down to the output.", _KINDS),
    ]
    columns = (f'<div class="column">{"".join(column)}</div>' for column in (left, right) if any(column))
    return f'<div class="grid">{"".join(columns)}</div>\n'


def _search(facts: Facts, figures: Mapping[str, Figure]) -> str:
    insight = facts.insight if facts.insight and facts.insight.objective == "mrr" else None
    note = "A dot is one training, the line the best so far: noisy values, so the best is partly luck."
    if insight is None:
        return _section(figures, "best_so_far", "The search", note, _STAGES)
    note += " Squares: what the design recommended then was believed to be worth, with 90 % intervals."
    chips = {**_STAGES, "serial": "believed", "muted": "random search"}
    return _section(figures, "best_so_far", "The search", note, chips, _random_search(insight) + search_table(insight))


def _random_search(insight: Insight) -> str:
    return (
        "<details><summary>How the band of random search is computed</summary><p>Nobody ran it: a surrogate was fitted "
        f"to all {insight.results} results. 400 random searches go through random architectures, at loss weights as "
        "the trials had them, each on a function of its own drawn from the surrogate, and see its values with noise. "
        "Dotted: the median of their best so far; grey: the middle 90 %.</p></details>"
    )


def _effects(facts: Facts, figures: Mapping[str, Figure]) -> str:
    insight = facts.insight
    if insight is None:
        return ""
    where = f" at {_weights_text(insight.at)}" if insight.at else ""
    note = (
        f"By how much {facts.objective} rises when this adapter is parallel instead of serial, in thousandths, on "
        f"average over all architectures{where}. Outlined and bold: the 90 % interval excludes 0. Posterior of a "
        f"surrogate fitted to {insight.results} results."
    )
    kinds = {"parallel": "parallel is better", "serial": "serial is better"}
    below = interactions(insight) + effects_table(insight)
    return _section(figures, "effects", "What mattered: adapters", note, kinds, below)


def _weights(facts: Facts, figures: Mapping[str, Figure]) -> str:
    if facts.insight is None or not facts.insight.weights:
        note = "Dots are trainings, the line joins the means of the levels."
        return _section(figures, "weights", "Loss weights", note)
    several = len({curve.architecture for curve in facts.insight.weights}) > 1
    note = (
        "Dots are trainings, lines and bands the surrogate's mean and 90 % interval for each level against the average "
        f"of the levels.{' Every architecture at which levels were compared has its own line.' * several}"
    )
    return _section(figures, "weights", "What mattered: loss weights", note, None, weights_table(facts.insight))


def _retests(facts: Facts, figures: Mapping[str, Figure]) -> str:
    note = f"Trained again with fresh seeds: small dots. {sentence(facts.rule)}"
    if any(candidate.search_value is not None for candidate in facts.candidates):
        note += " A diamond is what the search had scored, with the luck of being picked."
    return _section(figures, "retests", "Re-tests", note, None, decision(facts) + audit(facts) + retests_table(facts))


def _cost(facts: Facts, figures: Mapping[str, Figure]) -> str:
    note = (
        "Trainings at the search's fidelity; no training beats those on the line, which bear their numbers, in both "
        "cost and quality. Serving costs the same for every design: a serial and a parallel adapter have the same "
        "parameters and take the same multiplications."
    )
    return _section(figures, "cost", "Quality against cost", note, None, cost_table(facts))


def _section(
    figures: Mapping[str, Figure],
    name: str,
    title: str,
    note: str,
    colours: Mapping[str, str] | None = None,
    below: str = "",
) -> str:
    """A picture with its title, how to read it, and what stands below it (HTML)."""
    if name not in figures:
        return ""
    svg = inline_svg(figures[name], escape(f"{title}. {note}", quote=True))
    return (
        f'<section id="{name}"><h2>{escape(title)}</h2><p class="note">{escape(note)}</p>{_chips(colours or {})}'
        f"{svg}{below}</section>\n"
    )


def _timeline(facts: Facts, figures: Mapping[str, Figure]) -> str:
    if "timeline" not in figures:
        return ""
    svg = inline_svg(figures["timeline"], "Timeline of the lanes; the table below has their figures")
    return (
        '<section id="timeline"><h2>Who ran when</h2><p class="note">One row a lane, one bar a run with its number; a '
        "thin line is a lane that waited. An outlined bar was stopped early, × is a failure.</p>"
        f'{_chips(_TIMES)}<div class="scroll wide" tabindex="0">{svg}</div>{timeline_table(facts)}</section>\n'
    )


def _chips(kinds: Mapping[str, str]) -> str:
    if not kinds:
        return ""
    chips = (f'<span><i style="--c:var(--{colour})"></i>{text}</span>' for colour, text in kinds.items())
    return f'<p class="chips">{"".join(chips)}</p>'


def _test_table(facts: Facts) -> str:
    """Final models and references on the test split; the bar compares the MRRs."""
    if not facts.comparison:
        return ""
    top = max((float(row["mrr"]) for row in facts.comparison), default=0.0) or 1.0
    rows = []
    for row in sorted(facts.comparison, key=lambda row: -float(row["mrr"])):
        name, won = str(row["name"]), row["name"] == "winner"
        label = f"{NAMES.get(name, name)} ★" if won else NAMES.get(name, name)
        if facts.winner is not None and name == facts.winner.arm:
            label += ", no prior"
        figures = "".join(f'<td class="n">{_number(row.get(key))}</td>' for key in ("mrr", "recall@10", "ndcg@10"))
        width = f"{100 * float(row['mrr']) / top:.0f}%"
        bar = f'<td class="bar{"" if won else " other"}" style="--w:{width}"></td>'
        title = f' title="{escape(str(row["note"]), quote=True)}"' if row.get("note") else ""
        name_cell = f'<td class="name">{escape(label)}</td>'
        rows.append(f"<tr{title}{' class=best' if won else ''}>{name_cell}{figures}{bar}</tr>")
    heads = "".join(f'<th class="n">{title}</th>' for title in ("MRR", "R@10", "N@10"))
    head = f'<tr><th>model</th>{heads}<th class="empty"></th></tr>'
    note = "All items ranked, read once. Popularity and neighbours need no training."
    table = f'<div class="scroll"><table>{head}{"".join(rows)}</table></div>'
    return f'<section><h2>Test split</h2><p class="note">{note}</p>{table}</section>\n'


def _trials(facts: Facts) -> str:
    if not facts.trials:
        return ""
    best = best_trial(facts.trials)
    reasons = any(trial.result and trial.result.reason for trial in facts.trials)
    names = list(facts.study.config.search.weights.searched())
    head = ["#", "stage", "architecture", *(f"λ {name}" for name in names), "status", "MRR", "R@10", "N@10", "time"]
    columns = "".join(f"<th{_numeric(title)}>{escape(title)}</th>" for title in head + ["reason"] * reasons)
    rows = "".join(_trial_row(trial, names, reasons, best is not None and trial.spec.id == best.spec.id)
                   for trial in facts.trials)  # fmt: skip
    return (
        '<section><h2>Trials</h2><p class="note">Figures of the validation part, at the best epoch. '
        "S is a serial and P a parallel adapter; per layer: causal, context, recommendation.</p>"
        f'<div class="scroll"><table><tr>{columns}</tr>{rows}</table></div></section>\n'
    )


def _trial_row(trial: Trial, names: Iterable[str], reasons: bool, best: bool) -> str:
    spec, result = trial.spec, trial.result
    metrics = result.metrics if result else {}
    stage = f"{spec.stage} · {spec.arm}" if spec.arm else spec.stage
    cells = [
        f'<td class="n">{spec.number}</td><td>{escape(stage)}</td>',
        f"<td><code>{_letters(Architecture(spec.bits))}</code></td>",
        *(f'<td class="n">{spec.weights[name]:g}</td>' if name in spec.weights else "<td></td>" for name in names),
        f'<td><span class="status {trial.status}">{escape(trial.status.replace("_", " "))}</span></td>',
        *(f'<td class="n">{_number(metrics.get(name))}</td>' for name in ("mrr", "recall@10", "ndcg@10")),
        f'<td class="n">{_duration(result.cost.wall_s) if result else ""}</td>',
        f'<td class="reason">{escape(result.reason or "") if result else ""}</td>' if reasons else "",
    ]
    return f"<tr{' class=best' if best else ''}>{''.join(cells)}</tr>\n"


def _where(facts: Facts) -> str:
    folder = facts.study.folder
    places = {
        "this study": folder,
        "trials": folder / "trials",
        "re-tests and decision": folder / "promotion.json",
        "final run": folder / "final",
        "model to carry off": folder / "best",
        "pictures": folder / "report",
    }
    entries = "".join(
        f"<dt>{name}</dt><dd><code>{escape(str(path))}</code></dd>" for name, path in places.items() if path.exists()
    )
    commands = "".join(
        f'<p class="note">{escape(what)}</p><pre><code>{escape(command)}</code></pre>'
        for what, command in next_commands(facts.study).items()
    )
    return f'<section><h2>Where everything is, and what next</h2><dl class="where">{entries}</dl>{commands}</section>\n'


def next_commands(study: Study) -> dict[str, str]:
    """What one can do next with a study, as commands by their purpose."""
    folder, best = shlex.quote(study.config.location), shlex.quote(str(study.folder / "best"))
    study_file = shlex.quote(str(study.folder / "study.yaml"))
    commands = {}
    if not (study.folder / "final" / "metrics.json").exists():
        commands["Go on with the search, up to an export"] = f"darec-search run {study_file}"
    if (study.folder / "best" / "architecture.json").exists():
        data = shlex.quote(study.config.data.path)
        commands["Recommend with the winner"] = f"darec-search recommend {best} --history ITEM,ITEM,ITEM --top 10"
        commands["Measure it on other data"] = f"darec-search evaluate {best} {data}"
        commands["Carry it off"] = f"darec-search export {folder} --to FOLDER"
    if (study.folder / "mlflow.db").exists():
        uri = shlex.quote(f"sqlite:///{(study.folder / 'mlflow.db').absolute()}")
        commands["Look at every trial in MLflow"] = f"mlflow ui --backend-store-uri {uri}"
    elif study.config.tracking.uri:
        commands["Every trial is in MLflow at"] = redact(study.config.tracking.uri)
    return commands


def _footer(study: Study) -> str:
    packages = study.environment.get("packages", {})
    versions = ", ".join(f"{name} {version}" for name, version in packages.items() if version)
    commit = str(study.environment.get("commit") or "")[:12]
    parts = [versions, f"commit {commit}" if commit else "", f"data {study.fingerprint[:16]}", f"study {study.id}"]
    return f"<footer>{escape(' · '.join(part for part in parts if part))}</footer>"


def _letters(architecture: Architecture) -> str:
    """The text form with serial and parallel in their colours."""
    text = re.sub(r"P+", r'<span class="p">\g<0></span>', architecture.text)
    return re.sub(r"S+(?![^<]*>)", r'<span class="s">\g<0></span>', text)


def _weights_text(weights: Mapping[str, Any]) -> str:
    return " · ".join(f"λ {name} {value:g}" for name, value in weights.items())


def _numeric(title: str) -> str:
    return "" if title in ("stage", "architecture", "status", "reason") else ' class="n"'


def _number(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, int | float) else "–"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
