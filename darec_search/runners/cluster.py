"""A Ray to run on: a cluster that exists, or one of its own on this machine."""

from __future__ import annotations

import logging
import math
import os
import secrets
import signal
import socket
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from darec_search.config import PromotionConfig, ResourcesConfig, StudyConfig
from trainer.errors import BadInput

_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Train's controller looks at its workers this often; the default of 2 s delays every start and every recovery.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    # A lane that waits for a node is no failure, and what it asks for has to stay asked for.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "3600",
    # Lanes, Tune trials and controllers are more processes than CPUs; Ray warns of that on the terminal.
    "RAY_worker_maximum_startup_concurrency": "16",
    # Tune's new output prints a table even when it is told to be silent.
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # The study folder is the truth: Tune writes no logs and hardly any state of its own.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
_OBJECT_STORE_BYTES = 200 * 2**20
_ANSWER_S = 5.0
_HTTP2_SETTINGS = b"\x04"
_HTTP2_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00" + _HTTP2_SETTINGS + b"\x00" * 5
"""Connection preface and an empty SETTINGS frame (RFC 9113, section 3.4); a server answers with its own SETTINGS."""

Node = Mapping[str, float]
"""What a node has: `CPU`, `GPU`, …"""

logger = logging.getLogger(__name__)


def connect(config: StudyConfig) -> None:
    """Join the Ray cluster that the study or RAY_ADDRESS names, else start one on this machine; once per process.

    The cluster of its own runs its dashboard on 127.0.0.1, because Ray frees the resources of a killed Train run
    through the dashboard. Ray's other ports listen on every interface, so it demands a token that only this process's
    children know.

    Raises:
        BadInput: if the address does not answer as a Ray cluster.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        return
    address = config.resources.address or os.environ.get("RAY_ADDRESS")
    # ray.init replaces the SIGTERM handler; a stop must still reach the controller.
    handler = signal.getsignal(signal.SIGTERM)
    if address:
        _join(address)
    else:
        _start(config)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)
    at = ray.get_runtime_context().gcs_address
    if open_to_others(at, os.environ):
        logger.warning(
            "the Ray cluster at %s asks for no token: whoever reaches its ports can run code there; set "
            "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH on every node",
            at,
        )


def check_cluster(config: StudyConfig) -> None:
    """Check within seconds that a Ray cluster answers where the study or RAY_ADDRESS says, and what it has room for.

    Starts and joins nothing, so it can be asked from any machine that reaches the cluster's head.

    Raises:
        BadInput: if none answers, or it has no room for a lane or for the final run.
    """
    address = config.resources.address or os.environ.get("RAY_ADDRESS")
    if not address or address == "auto":
        return
    _probe(address)
    if not config.resources.autoscaling:
        nodes = _nodes_at(address)
        room_for_lanes(config.resources, nodes)
        check_final_run(config.promotion, nodes)


def disconnect() -> None:
    """Leave the cluster; one of its own ends. Whatever this process still runs there is killed."""
    import ray

    ray.shutdown()


def room_for_lanes(resources: ResourcesConfig, nodes: Sequence[Node] | None = None) -> int:
    """How many of the lanes asked for a cluster has room for.

    Args:
        resources: what is asked for. A lane's workers may be on several nodes.
        nodes: of the cluster; those of the connected one when absent.

    Raises:
        BadInput: if there is room for none.
    """
    nodes = _nodes() if nodes is None else nodes
    lanes, each = resources.lanes, resources.each
    room = room_for(each.cpus, each.gpus, nodes) // resources.workers_per_lane
    if room == 0:
        raise _no_room(resources, nodes)
    if room < lanes:
        logger.warning("the Ray cluster has room for %d of %d lanes; going on with %d", room, lanes, room)
    return min(room, lanes)


def check_final_run(promotion: PromotionConfig, nodes: Sequence[Node] | None = None) -> None:
    """Refuse a final run that a cluster could never start, before the search is paid for.

    Args:
        promotion: says what it needs.
        nodes: of the cluster; those of the connected one when absent.

    Raises:
        BadInput: if its workers do not fit.
    """
    cpus, gpus = promotion.cpus_per_worker, promotion.gpus_per_worker
    room = room_for(cpus, gpus, nodes)
    if room < promotion.num_workers:
        raise BadInput(
            f"promotion.num_workers: the final run needs {promotion.num_workers} workers of {cpus:g} CPUs and {gpus:g} "
            f"GPUs, the Ray cluster has room for {room}; lower num_workers or what each needs, or use a larger cluster"
        )


def room_for(cpus: float, gpus: float, nodes: Sequence[Node] | None = None) -> int:
    """How many processes a cluster has room for, each on one node.

    Args:
        cpus: of each.
        gpus: of each, or a share of one.
        nodes: of the cluster; those of the connected one when absent.
    """
    return sum(_room(node, cpus, gpus) for node in (_nodes() if nodes is None else nodes))


def _no_room(resources: ResourcesConfig, nodes: Sequence[Node]) -> BadInput:
    largest = max(((node.get("CPU", 0), node.get("GPU", 0)) for node in nodes), default=(0, 0))
    workers, each = resources.workers_per_lane, resources.each
    who, fields = "a lane needs", "cpus_per_lane or gpus_per_lane"
    if workers > 1:
        who, fields = f"a lane needs {workers} workers, each", f"workers_per_lane, {fields}"
    return BadInput(
        f"resources: {who} {each.cpus:g} CPUs and {each.gpus:g} GPUs on one node, and the Ray cluster, whose largest "
        f"node has {largest[0]:g} and {largest[1]:g}, has no room for that; lower {fields}, use a larger cluster, or "
        "set resources.autoscaling if it gets nodes when they are asked for"
    )


def _nodes() -> list[Node]:
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _nodes_at(address: str) -> list[Node]:
    """The nodes of a cluster that this process has not joined."""
    from ray import _raylet
    from ray.core.generated import gcs_pb2

    ray_core: Any = _raylet
    messages: Any = gcs_pb2
    try:
        client = ray_core.GcsClient(address=address)
        found = client.get_all_node_info(timeout=_ANSWER_S, state_filter=messages.GcsNodeInfo.ALIVE)
    except Exception as error:  # whatever Ray raises, the cluster has not told
        raise _no_answer(address, " ".join(str(error).split())[:200]) from error
    return [dict(node.resources_total) for node in found.values()]


def _room(node: Node, cpus: float, gpus: float) -> int:
    rooms = [math.floor(node.get(name, 0) / need + 1e-9) for name, need in (("CPU", cpus), ("GPU", gpus)) if need]
    return min(rooms)


def _start(config: StudyConfig) -> None:
    import ray

    resources, promotion = config.resources, config.promotion
    cpus = max(resources.lanes * resources.cpus_per_lane, promotion.num_workers * promotion.cpus_per_worker)
    if not {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ):
        # Otherwise Ray writes a token into the home directory, which may be read-only.
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    # Nobody announces a preemption on this machine: a process less for every Train run.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    ray.init(
        address="local",
        num_cpus=math.ceil(cpus),
        include_dashboard=True,
        dashboard_host="127.0.0.1",
        object_store_memory=_OBJECT_STORE_BYTES,
        **_quiet(),
    )


def _join(address: str) -> None:
    import ray

    if address != "auto":
        _probe(address)
    try:
        ray.init(address=address, **_quiet())
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise _no_answer(address, " ".join(str(error).split())[:200]) from error


def open_to_others(address: str, environment: Mapping[str, str]) -> bool:
    """Whether a Ray cluster at host:port takes commands from any machine that reaches it.

    Ray's ports listen on every interface unless its address is that of the machine itself; what guards them is a token.
    """
    local = address.rpartition(":")[0] in ("127.0.0.1", "localhost", "[::1]")
    token = environment.get("RAY_AUTH_MODE") == "token" or environment.get("RAY_USE_TLS", "0") == "1"
    return not (local or token)


def _probe(address: str) -> None:
    """Say hello in HTTP/2, as Ray's head speaks it: fails within seconds where Ray itself would try for minutes."""
    if "://" in address:
        raise BadInput(
            f"resources.address {address}: Ray Client is not supported; give host:port of the cluster's head "
            "(port 6379 by default), or run on the cluster with `ray job submit`"
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise BadInput(f"resources.address {address}: write it as host:port, or `auto`")
    try:
        with socket.create_connection((host, int(port)), timeout=_ANSWER_S) as connection:
            if os.environ.get("RAY_USE_TLS", "0") == "1":
                return
            connection.sendall(_HTTP2_HELLO)
            answer = connection.recv(9)
    except OSError as error:
        raise _no_answer(address, error.strerror or str(error)) from error
    if answer[3:4] != _HTTP2_SETTINGS:
        raise _no_answer(address, "something else listens on that port")


def _no_answer(address: str, reason: str) -> BadInput:
    return BadInput(
        f"resources.address {address}: no Ray cluster answers there ({reason}); "
        "start one with `ray start --head`, or leave the address out"
    )


def _quiet() -> dict[str, Any]:
    return {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
