"""Descriptions of runs, in Markdown."""

from __future__ import annotations

from pathlib import Path

from darec_search.study import Study, Trial
from darec_search.tracking.traces import read_json


def study_note(study: Study) -> str:
    """The report's headline, verdict and final table."""
    from darec_search.report.facts import gather, headline, verdict  # the report loads its plotting library

    facts = gather(study)
    sentences = " ".join(sentence.text for sentence in verdict(facts))
    design = ""
    if facts.winner is not None:
        weights = ", ".join(f"{name} {value:g}" for name, value in facts.winner.weights.items())
        design = f"`{facts.winner.architecture.text}`{f' at λ: {weights}' if weights else ''}"
    parts = [f"**{headline(facts).text}**", design, sentences, _table(study.folder / "final" / "comparison.json")]
    return "\n\n".join(part for part in parts if part)


def trial_note(trial: Trial, objective: str, value: float | None) -> str:
    """What a trial brought, in one line."""
    if value is not None:
        return f"Validation {objective.replace('_', ' ').replace('mrr', 'MRR')} {value:.4f}."
    if trial.result is not None and trial.result.reason:
        return f"Ended as {trial.status.replace('_', ' ')}: {trial.result.reason}"
    return ""


def _table(file: Path) -> str:
    """The comparison on the test split."""
    rows = read_json(file)
    if not isinstance(rows, list):
        return ""
    lines = ["| on the test split | MRR | Recall@10 | NDCG@10 |", "| --- | --- | --- | --- |"]
    for row in rows:
        figures = " | ".join(f"{row[name]:.4f}" for name in ("mrr", "recall@10", "ndcg@10"))
        lines.append(f"| {row['name']} | {figures} |")
    return "\n".join(lines)
