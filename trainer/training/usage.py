"""What a run's process and its GPU were busy with, sampled by a thread of its own into the run's folder.

One line of `usage.jsonl` a sample: `at` (Unix seconds); `process_cpu_percent` (100 is one core) and
`process_memory_megabytes`; `cpu_utilization_percentage` and `system_memory_usage_megabytes` of the machine; with a GPU
`gpu_memory_usage_megabytes` of the device, and `gpu_utilization_percentage` where NVIDIA's library answers.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

USAGE = "usage.jsonl"
_INTERVAL_S = 5.0
_MEGABYTE = 2.0**20

logger = logging.getLogger(__name__)


@contextmanager
def recorded_usage(folder: Path, device: str, wanted: bool, interval_s: float = _INTERVAL_S) -> Iterator[None]:
    """Sample while the block runs, and once more at its end; rows of an earlier attempt are kept.

    Args:
        folder: takes `usage.jsonl`.
        device: the run's; a GPU is sampled too.
        wanted: without it, do nothing.
        interval_s: seconds between two samples.
    """
    if not wanted:
        yield
        return
    ended = threading.Event()
    thread = threading.Thread(target=_record, args=(folder, device, interval_s, ended), name="usage", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(interval_s)


def _record(folder: Path, device: str, interval_s: float, ended: threading.Event) -> None:
    """Figures are not worth a run: whatever goes wrong here ends the sampling alone."""
    try:
        sample = _sampler(device)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / USAGE).open("a", encoding="utf-8") as file:
            over = False
            while not over:
                over = ended.wait(interval_s)
                file.write(json.dumps(sample()) + "\n")
                file.flush()
    except Exception:
        logger.warning("the usage of %s is recorded no further", folder.name, exc_info=True)


def _sampler(device: str) -> Callable[[], dict[str, float]]:
    """A function that tells the usage since it was last called."""
    import psutil  # no part of a run that does not ask for it

    process = psutil.Process()
    process.cpu_percent()
    psutil.cpu_percent()

    def sample() -> dict[str, float]:
        memory = psutil.virtual_memory()
        return {
            "at": time.time(),
            "process_cpu_percent": process.cpu_percent(),
            "process_memory_megabytes": process.memory_info().rss / _MEGABYTE,
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": (memory.total - memory.available) / _MEGABYTE,
            **(_gpu(device) if device.startswith("cuda") else {}),
        }

    return sample


def _gpu(device: str) -> dict[str, float]:
    import torch  # readers of the file need none

    free, total = torch.cuda.mem_get_info(device)
    figures = {"gpu_memory_usage_megabytes": (total - free) / _MEGABYTE}
    with suppress(ModuleNotFoundError, RuntimeError):  # needs nvidia-ml-py, and a driver that lets itself be asked
        figures["gpu_utilization_percentage"] = float(torch.cuda.utilization(device))
    return figures
