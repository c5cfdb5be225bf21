"""What makes a study this study: all that changes a trial's outcome beside its spec; and where it was run.

`environment.json` keeps both, from the first start on. A later start with another identity is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Iterable
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from darec_search.config import StudyConfig
from darec_search.shared_folder import SharedFolder
from trainer.config import RunConfig
from trainer.errors import BadInput
from trainer.storage import reached

_READ_BY_CHECKS = ("environment.json", "warm_start.json")
_PACKAGES = ("darec-search", "torch", "ray", "transformers", "botorch", "ax-platform", "optuna", "mlflow")


def check_folder(config: StudyConfig, fingerprint: str, layers: int) -> None:
    """Check that the study folder is free or holds this very study; changes nothing.

    Raises:
        BadInput: if it holds another study or something else.
    """
    found = _looked_into(config)
    if "environment.json" in found:
        old = read_environment(config.folder)["identity"]
        _refuse_another(config.location, old, identity(config, fingerprint, layers))
    elif found:
        raise BadInput(f"{config.location}: is not empty and holds no study; choose another `output`")


def _looked_into(config: StudyConfig) -> list[str]:
    """What the study folder holds; of one at a URL, what checks read is copied here."""
    if config.url is None:
        folder = config.folder
        if folder.exists() and not folder.is_dir():
            return [folder.name]
        names = [file.name for file in folder.iterdir()] if folder.exists() else []
    else:
        shared = SharedFolder(config.url)
        shared.store.require_create()
        with reached():
            for name in _READ_BY_CHECKS:
                shared.pull(name)
            names = shared.store.names("")
    return [name for name in names if name[0] != "."]  # hidden: the lease, or what a crash left of an atomic write


def environment_of(config: StudyConfig, fingerprint: str, layers: int) -> dict[str, Any]:
    """The environment of the first start; a later one in other surroundings is added to `resumed_with`."""
    surroundings = _surroundings()
    if not (config.folder / "environment.json").exists():
        own = identity(config, fingerprint, layers)
        known = {"fingerprint": fingerprint, "layers": layers, "identity": own}
        return {"study": _digest(own), **known, **surroundings}
    environment = read_environment(config.folder)
    starts = [environment, *environment.get("resumed_with", [])]
    if any(starts[-1].get(name) != value for name, value in surroundings.items()):
        environment["resumed_with"] = [*starts[1:], surroundings]
    return environment


def identity(config: StudyConfig, fingerprint: str, layers: int) -> dict[str, Any]:
    """Everything that changes a trial's outcome beside its spec."""
    dumped = config.model_dump(mode="json")
    model = {name: value for name, value in dumped["model"].items() if name != "architecture"}
    data = {name: dumped["data"][name] for name in ("validation_users", "exclude_seen", "max_items", "max_item_tokens")}
    return {
        "fingerprint": fingerprint,
        "layers": layers,
        "seed": config.seed,
        "data": data,
        "model": model,
        "losses": dumped["losses"],
        "negatives": dumped["negatives"],
        "optimization": {name: value for name, value in dumped["optimization"].items() if name != "epochs"},
        "precision": config.execution.precision,
    }


def identity_of(study: dict[str, Any], run: RunConfig) -> dict[str, Any]:
    """The identity of a study whose trials would be like its final run, which may have what they have not."""
    model, optimization = run.model.model_dump(mode="json"), run.optimization.model_dump(mode="json")
    return {
        **study,
        "model": {**study["model"], **{name: model[name] for name in ("prior", "head_dropout")}},
        "optimization": {**study["optimization"], "rates": optimization["rates"]},
    }


def _refuse_another(location: str, old: dict[str, Any], new: dict[str, Any]) -> None:
    fields = differing(old, new)
    if fields:
        raise BadInput(
            f"{location}: belongs to another study (it differs in {', '.join(fields)}); "
            "choose another `output`, or give those fields their old values to go on with it"
        )


def differing(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Names of the fields of a new identity that an old one has otherwise.

    A field that the old one lacks is younger than it; its default is what there was before.
    """
    before, defaults = dict(_leaves(old)), dict(_leaves(_defaults()))
    return sorted(name for name, value in _leaves(new) if before.get(name, defaults.get(name)) != value)


@cache
def _defaults() -> dict[str, Any]:
    return identity(StudyConfig.model_validate({"name": "defaults", "data": {"path": "."}}), "", 0)


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _digest(identity: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def read_environment(folder: Path) -> dict[str, Any]:
    """What `environment.json` of a study folder says.

    Raises:
        BadInput: if it cannot be read, or is none of a study.
    """
    file = folder / "environment.json"
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{file}: cannot be read as JSON; restore it or choose another `output`") from error
    needed = {"study", "fingerprint", "layers", "identity", "packages", "commit"}
    if not isinstance(document, dict) or needed - document.keys():
        raise BadInput(f"{file}: is no environment of a study; restore it or choose another `output`")
    return document


def _surroundings() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "commit": _commit(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Commit of the checkout that this code runs from; None for an installed package or without git."""
    here = Path(__file__).resolve().parent
    try:
        output = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return output.stdout.strip() or None
