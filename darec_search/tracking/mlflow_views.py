"""What MLflow's pages show of a study without a click too many: a saved view, written as tags of the experiment.

The view is the one that the button "Views" of the page of runs lists. Its table has the columns that compare designs,
best first; its charts answer "which bits, which λ" by parallel coordinates, and "which is best" by bars.
"""

from __future__ import annotations

import json
from typing import Any

from darec_search.study import Study
from darec_search.tracking.records import OBJECTIVE, layer_name

_VIEW = "mlflow.sharedViewState."
_DESIGN, _RANKING, _CURVES = "Which bits, which λ", "Which is best", "How they got there"


def experiment_tags(study: Study) -> dict[str, str]:
    """Tags of the experiment: what kind it is, its first metric, and the study's saved view."""
    return _tags(study.id, study.config.name, OBJECTIVE, _state(study))


def trainings_tags(group: str, name: str) -> dict[str, str]:
    """The same for a folder of trainings: methods side by side, best on the test split first."""
    metrics = ["test/mrr", "test/recall_at_10", "test/ndcg_at_10", "valid/mrr", "cost/wall_s"]
    columns = [_column("params", param) for param in ("method", "architecture", "seed", "epochs")]
    columns += [_column("metrics", metric) for metric in metrics]
    state = {
        # Every run but the parent has a method.
        "searchFilter": f"tags.`darec.study` = '{group}' AND params.`method` LIKE '%'",
        "orderByKey": _column("metrics", "test/mrr"),
        "orderByAsc": False,
        "selectedColumns": columns,
        "columnOrder": columns,
        "runsHiddenMode": "SHOW_ALL",
        "isAccordionReordered": True,
        "compareRunSections": [_section(_RANKING, 2), _section(_CURVES, 1)],
        "compareRunCharts": [_bars("test/mrr"), _bars("valid/mrr"), _lines("curve/mrr")],
    }
    return _tags(group, name, "valid/mrr", state)


def _tags(group: str, name: str, metric: str, state: dict[str, Any]) -> dict[str, str]:
    view = {"name": f"Compare {name}", "createdAt": 0, "updatedAt": 0, "state": _compact(state)}
    return {
        "mlflow.experimentKind": "custom_model_development",
        "mlflow.experiment.primaryMetric.name": metric,
        "mlflow.experiment.primaryMetric.greaterIsBetter": "True",
        f"{_VIEW}{group}": _compact(view),
    }


def _state(study: Study) -> dict[str, Any]:
    """Filter, order, columns and charts; what is not said here stays as MLflow has it."""
    layers = [layer_name(layer, study.space.layers) for layer in range(study.space.layers)]
    weights = [f"lambda.{name}" for name in study.space.weights]
    axes = [*layers, *weights]
    params = ["architecture", *weights, "stage", "arm", "seed"]
    columns = [_column("metrics", name) for name in (OBJECTIVE, "test/mrr")]
    columns += [_column("params", name) for name in params] + [_column("metrics", "cost/wall_s")]
    return {
        # Every run but the parent has a stage.
        "searchFilter": f"tags.`darec.study` = '{study.id}' AND params.`stage` LIKE '%'",
        "orderByKey": _column("metrics", OBJECTIVE),
        "orderByAsc": False,
        "selectedColumns": columns,
        "columnOrder": columns,
        "columnWidths": {_column("params", "architecture"): min(40 * study.space.layers + 40, 400)},
        "runsHiddenMode": "SHOW_ALL",
        "isAccordionReordered": True,
        "compareRunSections": [_section(_DESIGN, 1), _section(_RANKING, 2), _section(_CURVES, 1)],
        "compareRunCharts": [
            _chart(_DESIGN, "PARALLEL", selectedParams=axes, selectedMetrics=[OBJECTIVE], showAllRuns=True),
            _bars(OBJECTIVE),
            _bars("test/mrr"),
            _lines("curve/mrr"),
        ],
    }


def _bars(metric: str) -> dict[str, Any]:
    return _chart(_RANKING, "BAR", metricKey=metric, displayName=metric, runsCountToCompare=30)


def _lines(metric: str) -> dict[str, Any]:
    return _chart(_CURVES, "LINE", metricKey=metric, selectedMetricKeys=[metric], displayName=metric)


def _chart(section: str, kind: str, **fields: object) -> dict[str, Any]:
    name = f"darec-{kind}-{fields.get('metricKey', '')}"
    return {"uuid": name, "type": kind, "metricSectionId": section, "deleted": False, "isGenerated": False, **fields}


def _section(title: str, columns: int) -> dict[str, Any]:
    shown = {"uuid": title, "name": title, "display": True, "isReordered": True, "columns": columns, "cardHeight": 360}
    return {**shown, "deleted": False, "isGenerated": False}


def _column(kind: str, name: str) -> str:
    return f"{kind}.`{name}`"


def _compact(document: object) -> str:
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False)
