"""Floating-point operations that a training step needs, for model-FLOPs utilisation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trainer.data.batches import Batch

PEAK_TFLOPS = {"H100": 989, "H200": 989, "A100": 312, "3090": 71, "4090": 165, "L4": 121}
"""Dense bfloat16, by a part of the device's name."""


def peak_tflops(device: str) -> int | None:
    """Of a device by its name; None for one that is not listed."""
    return next((tflops for name, tflops in PEAK_TFLOPS.items() if name in device), None)


def step_flops(
    batch: Batch,
    item_tokens: NDArray[np.int64],
    prompt_tokens: int,
    *,
    layers: int,
    hidden: int,
    bottleneck: int,
    n_items: int,
) -> float:
    """Multiplications and additions of a step: forward, gradients of inputs, gradients of trained weights.

    Attention counts the pairs that the masks leave. Nothing counts twice: padding, recomputation and rows of the last
    layer that nobody reads not at all. The feed-forward network is four times as wide as the model.

    Args:
        batch: the batch.
        item_tokens: [items] tokens of every sentence.
        prompt_tokens: those of the alignment prompt.
        layers: of the backbone, each a DALayer.
        hidden: width d of the backbone.
        bottleneck: of the adapters.
        n_items: of the catalogue.
    """
    spans = _span_tokens(batch, item_tokens)
    streams = [*_stream_tokens(batch, item_tokens), *(item_tokens[batch.align_items] + 1 + prompt_tokens)]
    tokens, read = float(sum(streams)), len(batch.targets) + len(batch.align_items)
    pairs = sum(size * size / 2 for size in streams) + sum(size * (size + 1) for size in spans)
    # Weights that a row meets in a layer: QKV, two output projections, feed-forward network; three adapters.
    frozen, adapters = hidden * hidden * (3 + 2 + 8), 3 * 2 * hidden * bottleneck
    keys_values = 2 * hidden * hidden
    whole = (layers - 1) * (tokens * (frozen + adapters) + 2 * hidden * pairs)
    last = tokens * keys_values + read * (frozen - keys_values + adapters)
    head = (len(batch.targets) + int(batch.align_counted.sum())) * hidden * n_items
    trained = ((layers - 1) * tokens + read) * adapters
    return 2.0 * (2 * (whole + last) + trained + 3 * head)


def _span_tokens(batch: Batch, item_tokens: NDArray[np.int64]) -> Sequence[int]:
    return (item_tokens[np.concatenate([batch.inputs, batch.align_items])] + 1).tolist()


def _stream_tokens(batch: Batch, item_tokens: NDArray[np.int64]) -> list[int]:
    parts = np.split(batch.inputs, np.cumsum(batch.lengths)[:-1])
    return [int((item_tokens[part] + 1).sum()) for part in parts]
