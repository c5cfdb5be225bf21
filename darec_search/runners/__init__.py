"""Where trials run. A runner is one file and one line here."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from darec_search.runners.base import Runner
    from darec_search.study import Study

RUNNERS = {
    "ray": "darec_search.runners.ray_tune:RayTuneRunner",
    "local": "darec_search.runners.local:LocalRunner",
}


def create(study: Study) -> Runner:
    """The runner that the study's `resources.runner` names.

    Raises:
        BadInput: if the Ray address does not answer or the cluster has no room for a single lane.
    """
    module, _, name = RUNNERS[study.config.resources.runner].partition(":")
    return cast("Runner", getattr(import_module(module), name)(study))
