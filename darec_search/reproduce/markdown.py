"""Results as Markdown, in the paper's layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from darec_search.reproduce.published import METRICS
from darec_search.reproduce.results import Entry, times_of
from darec_search.reproduce.setup import settings

_HEADS = {"ndcg@10": "NDCG@10", "recall@10": "Recall@10", "mrr": "MRR"}


def comparison_tables(results: Mapping[str, Mapping[str, Entry]], about: Mapping[str, Any]) -> str:
    """Table 2: metrics by method, measured beside published; then tests, times and settings of every method."""
    names = list(dict.fromkeys(name for entries in results.values() for name in entries))
    titles = {name: entry["title"] for entries in results.values() for name, entry in entries.items()}
    rows = [row for dataset, entries in results.items() for row in _metric_rows(dataset, entries, names)]
    parts = [_table(["Dataset", "Metric", *(titles[name] for name in names), "Improv."], rows)]
    parts.append(
        "Test split; mean ± standard deviation over seeds; best in bold, second best in italics. Improv.: DARec "
        "against the best other method, metric by metric."
    )
    for dataset, entries in results.items():
        facts = about["datasets"][dataset]
        ranked = "all items are ranked but those of the history" if facts["exclude_seen"] else "all items are ranked"
        parts += [f"**{dataset}**: {ranked}; {_compared(facts)}", _details(entries), _verdict(entries)]
    return "\n\n".join(part for part in parts if part) + "\n"


def figure_table(title: str, claim: str, datasets: Mapping[str, Sequence[Entry]]) -> str:
    """A figure's values."""
    parts = [f"## {title}", f"The paper: {claim}"]
    for dataset, entries in datasets.items():
        rows = [
            [entry["label"], *(_spread(entry, metric) for metric in METRICS), str(entry["seeds"])] for entry in entries
        ]
        parts += [f"**{dataset}**", _table(["", *_HEADS.values(), "seeds"], rows)]
    return "\n\n".join(parts) + "\n"


def times_table(title: str, claim: str, datasets: Mapping[str, Sequence[Entry]], hardware: str) -> str:
    """Table 4: measured here beside published, which were measured on four RTX 3090."""
    parts = [f"## {title}", f"The paper: {claim} Here: {hardware}; the paper: four RTX 3090."]
    for dataset, entries in datasets.items():
        rows = []
        for entry in entries:
            hours, seconds = times_of(entry)
            published = entry["published"] or ("", "")
            rows.append([entry["label"], f"{hours:.3g}", f"{seconds:.3g}", *(str(value) for value in published)])
        heads = ["Method", "Train time (h)", "Inference time (s)", "published train (h)", "published inference (s)"]
        parts += [f"**{dataset}**", _table(heads, rows)]
    return "\n\n".join(parts) + "\n"


def _metric_rows(dataset: str, entries: Mapping[str, Entry], names: Sequence[str]) -> list[list[str]]:
    rows = []
    for metric in METRICS:
        values = {name: entry[metric] for name, entry in entries.items()}
        order = sorted(values, key=values.__getitem__, reverse=True)
        marks: dict[str, Callable[[str], str]] = {order[0]: "**{}**".format}
        if len(order) > 1:
            marks[order[1]] = "*{}*".format
        cells = [_cell(entries.get(name), metric, marks.get(name, "{}".format)) for name in names]
        improvement = entries.get("darec", {}).get("improvement", {}).get(metric)
        gain = "" if improvement is None else f"{improvement:+.1%}"
        rows.append([dataset if metric == METRICS[0] else "", _HEADS[metric], *cells, gain])
    return rows


def _cell(entry: Entry | None, metric: str, mark: Callable[[str], str]) -> str:
    if entry is None:
        return ""
    published = f" (published {entry['published'][metric]:.4f})" if entry["published"] else ""
    return mark(_spread(entry, metric)) + published


def _spread(entry: Entry, metric: str) -> str:
    deviation = entry["sd"][metric]
    return f"{entry[metric]:.4f}" + ("" if deviation is None else f" ± {deviation:.4f}")


def _details(entries: Mapping[str, Entry]) -> str:
    rows = []
    for name, entry in entries.items():
        search = entry["search"]
        chosen = "none" if search is None else settings(search["chosen"] or {})
        trials = "" if search is None else str(search["trials"])
        epochs = ", ".join(map(str, entry["best_epoch"]))
        p_value = "" if entry["p_value"] is None else f"{entry['p_value']:.2g}"
        times = [f"{entry['train_s']:.3g}", f"{entry['inference_ms_per_user']:.3g}"]
        seeds = str(len(entry["seeds"])) if entry["seeds"] else "none drawn"
        rows.append([f"{entry['title']} (`{name}`)", seeds, p_value, *times, epochs, trials, chosen])
    heads = [
        "Method",
        "seeds",
        "p against DARec",
        "train (s)",
        "inference (ms a user)",
        "best epoch",
        "trials",
        "found",
    ]
    return _table(heads, rows)


def _verdict(entries: Mapping[str, Entry]) -> str:
    lines = []
    for name in ("darec", "darec_paper"):
        entry = entries.get(name, {})
        if "best_baseline" not in entry:
            continue
        best = entries[entry["best_baseline"]]
        p_value = entry["best_baseline_p_value"]
        said = "no difference" if p_value is None else f"p = {p_value:.2g}, paired t-test over users"
        lines.append(f"{entry['title']} against {best['title']}, the best other method by MRR: "
                     f"{entry['mrr'] / best['mrr'] - 1:+.1%} MRR ({said}).")  # fmt: skip
    unfinished = sum(entry["unfinished"] for entry in entries.values())
    if unfinished:
        lines.append(f"{unfinished} trainings are not finished.")
    return " ".join(lines)


def _compared(dataset: Mapping[str, Any]) -> str:
    if dataset["why_not_compared"] is None:
        return "the paper's cut by its Table 1; published figures stand beside the measured ones."
    return f"not compared with published figures: {dataset['why_not_compared']}."


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
