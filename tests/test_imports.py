"""Who may import whom: docs/architecture.md, held by reading every import statement."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((*ROOT.glob("trainer/**/*.py"), *ROOT.glob("darec_search/**/*.py")))

# What is imported → the only files (by prefix) that may do it.
ONLY_IN = {
    "ray": ("trainer/worker.py", "darec_search/runners/"),
    "mlflow": ("darec_search/tracking/",),
    "ax": ("darec_search/samplers/",),
    "optuna": ("darec_search/samplers/",),
    "botorch": ("darec_search/samplers/",),
    "trainer.worker": ("darec_search/runners/",),
    "darec_search": ("darec_search/",),
}
# Files (by prefix) → what they must not import.
NEVER = {
    "trainer/config.py": ("trainer.data", "trainer.models", "trainer.training"),
    "trainer/architecture.py": ("trainer.data", "trainer.models", "trainer.training"),
    "trainer/models/": ("trainer.data", "trainer.losses", "trainer.metrics", "trainer.training", "trainer.baselines"),
    "trainer/data/": ("trainer.models", "trainer.losses", "trainer.metrics", "trainer.training", "trainer.baselines"),
    "trainer/losses.py": ("trainer.training", "trainer.baselines"),
    "trainer/metrics.py": ("trainer.training", "trainer.baselines"),
    "trainer/training/": ("trainer.worker", "trainer.inference"),
    "darec_search/samplers/": ("trainer.training", "trainer.models", "trainer.data", "darec_search.study"),
    "darec_search/tracking/": ("darec_search.controller", "darec_search.runners", "darec_search.samplers"),
    "darec_search/report/": ("darec_search.controller", "darec_search.runners.ray_tune", "darec_search.samplers"),
}


def imported(file: Path) -> set[str]:
    """Every module that a file imports, at its top or inside a function."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


@pytest.mark.parametrize("package", ONLY_IN)
def test_imported_only_where_it_belongs(package):
    wrong = [
        str(file.relative_to(ROOT))
        for file in FILES
        if not str(file.relative_to(ROOT)).startswith(ONLY_IN[package])
        and any(within(module, package) for module in imported(file))
    ]
    assert not wrong


@pytest.mark.parametrize("place", NEVER)
def test_never_imports(place):
    wrong = [
        (str(file.relative_to(ROOT)), module)
        for file in FILES
        if str(file.relative_to(ROOT)).startswith(place)
        for module in imported(file)
        if any(within(module, package) for package in NEVER[place])
    ]
    assert not wrong


def test_the_rules_see_imports():
    """Guards the guard: the files that may use Ray, MLflow and Ax do."""
    for package in ("ray", "mlflow", "ax", "optuna"):
        assert any(within(module, package) for file in FILES for module in imported(file)), package
