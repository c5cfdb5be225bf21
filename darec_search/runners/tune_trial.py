"""What runs in the process of a Ray Tune trial; a module of its own, so that the process need not load torch."""

from __future__ import annotations

from typing import Any

import ray
from ray import tune

_POLL_S = 30.0


def drive_trial(config: dict[str, Any], exchange: Any) -> None:
    """One Tune trial: see that a lane gets the spec, report its rows, end with it.

    Args:
        config: the point as Tune shows it, with the `Job` under `job`.
        exchange: actor handle of the `Exchange`.
    """
    ray.get(exchange.submit.remote(config["job"]))
    seen, over = 0, False
    while not over:
        rows, over = ray.get(exchange.follow.remote(config["trial"], seen, _POLL_S))
        seen += len(rows)
        for row in rows:
            tune.report(row)
    if not seen:  # Tune prints a line for a trial that reported nothing
        tune.report({"epoch": 0})
