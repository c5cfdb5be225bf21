"""How fast is one optimiser step with all losses, and how much faster than the model as it is usually written?

python benchmarks/training_step.py [--quick] [--record] [--steps 12] [--batch-size 16] [--profile]

Amazon Scientific (a synthetic catalogue of its size where it is not at hand), batches of the real planner with all four
losses, one AdamW step each. Timed in turn on the same batches, weights and threads:

- the project's step: packing, forward, backward, clipping, optimiser;
- padded_darec.py: the same model with padded batches, two QKV projections, dense masks, all tokens through all
  layers, a second forward for alignment; fp32;
- the literal reference of the tests, on one batch.

On the CPU: a random OPT of 4 layers, 128 wide, fp32. On a GPU: OPT-125M's shape, the project's step in bfloat16, with
model-FLOPs utilisation, and the batch size that `--batch-size` says.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import psutil
import torch
from flops import peak_tflops, step_flops
from literal_darec import ReferenceDARec, literal_loss
from padded_darec import PaddedDARec
from recording import finish
from torch import Tensor
from workloads import dataset_folder, random_opt

from trainer.config import RunConfig
from trainer.data.batches import Batch, BatchPlanner
from trainer.data.text import encode_items
from trainer.losses import darec_losses
from trainer.models.backbones.opt import OPTBackbone
from trainer.models.darec import DARec
from trainer.models.streams import PROMPT
from trainer.training.feed import to_step_input
from trainer.training.optimizer import create_optimizer
from trainer.training.warm import Warm

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    if options.quick:
        options.steps = 3
    bench = Bench(options.batch_size, options.steps)
    if options.profile:
        _print_profile(bench)
        return
    line = {"benchmark": "training_step", **_measure(bench, literal_users=2 if options.quick else options.batch_size)}
    finish(line, options.record)


class Bench:
    """The model, its batches, and a step of each implementation."""

    def __init__(self, batch_size: int, steps: int) -> None:
        self.config = _config(batch_size)
        layers, hidden, heads = (12, 768, 12) if GPU else (4, 128, 4)
        self.materials = Warm().materials(self.config)
        self.opt = random_opt(layers, hidden, heads, len(self.materials.backbone.tokenizer))
        dataset, tokenizer = self.materials.dataset, self.materials.backbone.tokenizer
        self.tokens = encode_items(tokenizer, dataset.sentences, self.config.data.max_item_tokens)
        self.prompt = tokenizer(PROMPT, add_special_tokens=False)["input_ids"]
        bits = "-".join(("SPS", "PSP")[layer % 2] for layer in range(layers))
        model = self.config.model.model_copy(update={"architecture": bits})
        torch.manual_seed(0)
        self.model = DARec(OPTBackbone(self.opt), model, dataset.n_users, dataset.n_items).to(DEVICE)
        planner = BatchPlanner(dataset.train, dataset.n_items, self.materials.hard_negatives, self.config, 4)
        self.batches: list[Batch] = [batch for batch, _ in zip(planner.epoch(0), range(steps + 2), strict=False)]
        self.optimizer = create_optimizer(self.model, self.config.optimization)
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.padded = PaddedDARec(self.model, self.tokens, self.prompt)

    def ours(self, batch: Batch) -> Tensor:
        """The project's L of a batch."""
        step = to_step_input(batch, self.materials.packer, DEVICE)
        with torch.autocast("cuda", torch.bfloat16) if GPU else nullcontext():
            return darec_losses(self.model, step, self.config.losses)["total"]

    def research_code(self, batch: Batch) -> Tensor:
        """The padded model's."""
        return self.padded.losses(batch, self.config.losses)

    def flops(self, batch: Batch) -> float:
        """Operations that the batch needs."""
        return step_flops(
            batch,
            self.tokens.lengths,
            len(self.prompt),
            layers=len(self.model.backbone.layers),
            hidden=self.model.backbone.hidden,
            bottleneck=self.config.model.adapters.bottleneck,
            n_items=self.materials.dataset.n_items,
        )

    def step(self, loss: Callable[[Batch], Tensor], batch: Batch) -> float:
        """Seconds of one optimiser step."""
        started = time.perf_counter()
        self.optimizer.zero_grad(set_to_none=True)
        loss(batch).backward()
        torch.nn.utils.clip_grad_norm_(self.trained, self.config.optimization.max_grad_norm)
        self.optimizer.step()
        if GPU:
            torch.cuda.synchronize()
        return time.perf_counter() - started

    def literal_step(self, batch: Batch, users: int) -> float:
        """Seconds of the literal reference for the loss and gradients of a batch's first users, scaled to all."""
        model = self.model.to("cpu")
        trained = {name: tensor.detach().clone().requires_grad_() for name, tensor in model.trained_state().items()}
        reference = ReferenceDARec(
            self.opt, trained, self.config.model.model_copy(update={"architecture": model.architecture.text})
        )
        started = time.perf_counter()
        literal_loss(reference, self.tokens, self.prompt, batch, users, self.config.losses).backward()
        seconds = (time.perf_counter() - started) * len(batch.users) / users
        self.model.to(DEVICE)
        return seconds


def _measure(bench: Bench, literal_users: int) -> dict[str, Any]:
    losses = (bench.ours, bench.research_code)
    for loss in losses:
        bench.step(loss, bench.batches[0])
    rows = []
    for number, batch in enumerate(bench.batches[1:-1], 1):
        rows.append([bench.step(loss, batch) for loss in losses])
        print(f"step {number}: {rows[-1][0]:.3f} s, padded {rows[-1][1]:.3f} s", flush=True)
    ours, padded = (statistics.median(row[place] for row in rows) for place in (0, 1))
    literal = bench.literal_step(bench.batches[-1], min(literal_users, len(bench.batches[-1].users)))
    same = bench.step(bench.ours, bench.batches[-1])
    print(f"literal reference: {literal:.1f} s a step")
    batch_size = bench.config.optimization.batch_size
    line = {
        "data": Path(bench.config.data.path).name,
        "device": torch.cuda.get_device_name() if GPU else "cpu",
        "threads": torch.get_num_threads(),
        "batch_size": batch_size,
        "examples_per_second": round(batch_size / ours, 1),
        "step_s": round(ours, 4),
        "model_tflops": round(statistics.median(bench.flops(batch) for batch in bench.batches[1:-1]) / ours / 1e12, 3),
        "padded_step_s": round(padded, 4),
        "ratio": round(statistics.median(row[1] / row[0] for row in rows), 2),
        "ratio_literal": round(literal / same, 1),
        "peak_memory_mib": _peak_memory(bench, "ours"),
        "padded_peak_memory_mib": _peak_memory(bench, "research_code"),
    }
    if GPU:
        peak = peak_tflops(torch.cuda.get_device_name())
        line["mfu"] = None if peak is None else round(line["model_tflops"] / peak, 3)
    return line


def _peak_memory(bench: Bench, name: str) -> int:
    """MiB that a step needs beyond what stands before it; on the CPU in a process of its own."""
    if GPU:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        bench.step(getattr(bench, name), max(bench.batches, key=lambda batch: len(batch.inputs)))
        return round((torch.cuda.max_memory_allocated() - before) / 2**20)
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_peak_memory_of, (name, bench.config.optimization.batch_size, len(bench.batches) - 2))


def _peak_memory_of(name: str, batch_size: int, steps: int) -> int:
    bench = Bench(batch_size, steps)
    process = psutil.Process()
    before = process.memory_info().rss
    largest, done = [before], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            largest[0] = max(largest[0], process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    bench.step(getattr(bench, name), max(bench.batches, key=lambda batch: len(batch.inputs)))
    done.set()
    watcher.join()
    return round((largest[0] - before) / 2**20)


def _print_profile(bench: Bench) -> None:
    from torch.profiler import ProfilerActivity, profile

    bench.step(bench.ours, bench.batches[0])
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if GPU else [])]
    with profile(activities=activities) as profiler:
        for batch in bench.batches[1:-1]:
            bench.step(bench.ours, batch)
    events = {
        event.key: event.self_device_time_total if GPU else event.self_cpu_time_total
        for event in profiler.key_averages()
    }
    total = sum(events.values())
    for kind, names in KINDS.items():
        share = sum(time for key, time in events.items() if any(name in key for name in names)) / total
        print(f"{kind:32s} {share:6.1%}")
        events = {key: time for key, time in events.items() if not any(name in key for name in names)}
    print(f"{'everything else':32s} {sum(events.values()) / total:6.1%}")
    print("largest of these:", ", ".join(f"{key} {time / total:.1%}" for key, time in _largest(events.items())))


KINDS = {
    "attention": ("scaled_dot_product", "flash", "ScaledDotProduct", "varlen"),
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::linear", "gemm"),
    "optimiser and clipping": ("Optimizer", "_foreach", "_fused_adam", "linalg_vector_norm"),
    "rows gathered and joined": ("index", "aten::cat", "scatter", "aten::copy_", "gather"),
    "norms, residuals, activations": (
        "layer_norm",
        "aten::add",
        "threshold",
        "relu",
        "clamp",
        "mul",
        "div",
        "softmax",
        "sub",
        "exp",
        "fill",
        "zero",
    ),
}
"""Operations by a part of their name; the first kind that fits counts."""


def _largest(events: Iterable[tuple[str, float]], count: int = 6) -> list[tuple[str, float]]:
    return sorted(events, key=lambda event: -event[1])[:count]


def _config(batch_size: int) -> RunConfig:
    data = dataset_folder()
    return RunConfig.model_validate(
        {
            "data": {"path": str(data)},
            # Its tokenizer alone is used; the weights are random, of the benchmark's own size.
            "model": {"backbone": {"builtin": {"layers": 1, "hidden": 16, "heads": 1, "steps": 1}}},
            "optimization": {"batch_size": batch_size},
            "cache": str(Path(tempfile.gettempdir()) / "darec-search-benchmarks" / "cache"),
        }
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few steps; the literal reference on two users, scaled")
    parser.add_argument("--record", action="store_true", help="append the result to results/training_step.jsonl")
    parser.add_argument("--profile", action="store_true", help="where the project's step spends its time, and no more")
    parser.add_argument("--steps", type=int, default=12, help="steps that are timed")
    parser.add_argument("--batch-size", type=int, default=16, help="users a step")
    return parser


if __name__ == "__main__":
    main()
