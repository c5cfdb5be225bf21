"""What measured landscapes say about a search: how much architectures differ, how much seeds blur it, what explains it.

python benchmarks/landscape_report.py [NAME ...] [--out docs/images]

For each `landscapes/NAME.parquet` (all but variants by default): tables of noise against signal for every objective,
of what explains the differences, and of what early epochs tell; one picture `landscape-NAME.png`. Variants
(`NAME-ema.parquet`, `NAME-half.parquet` by half of the users, …) are compared with their landscape on the architectures
that both have: noise, and whether they have the same order.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pyarrow.parquet as pq
import torch
from landscape import LANDSCAPES
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy import stats

from darec_search.samplers.kernels import StructuredKernels
from darec_search.space import SearchSpace

Array = NDArray[np.float64]
OBJECTIVES: dict[str, Callable[[Array, Array], Array]] = {
    "MRR, best epoch": lambda mrr, ll: mrr.max(-1),
    "MRR, last epoch": lambda mrr, ll: mrr[..., -1],
    "MRR, mean of the last two epochs": lambda mrr, ll: mrr[..., -2:].mean(-1),
    "log-likelihood, best epoch": lambda mrr, ll: ll.max(-1),
    "log-likelihood, last epoch": lambda mrr, ll: ll[..., -1],
}
SLOTS = ("causal", "context", "rec")
FOLDS = 10


@dataclass(frozen=True)
class Landscape:
    """Metrics of m architectures, S seeds, E epochs."""

    name: str
    bits: Array
    """[m, 3L]."""
    mrr: Array
    """[m, S, E]."""
    log_likelihood: Array
    """[m, S, E]."""
    seconds: float
    """Mean seconds of a training."""

    @classmethod
    def read(cls, file: Path) -> Landscape:
        """Architectures that have all seeds, in the order of the file."""
        table = pq.read_table(file).to_pandas()
        seeds, epochs = table["seed"].nunique(), table["epoch"].max()
        whole = table.groupby("bits", sort=False).filter(lambda rows: len(rows) == seeds * epochs)
        whole = whole.sort_values(["bits", "seed", "epoch"], kind="stable")
        names = list(dict.fromkeys(whole["bits"]))
        shape = (len(names), seeds, epochs)
        return cls(
            file.stem,
            np.array([[int(bit) for bit in name] for name in names], dtype=np.float64),
            whole["mrr"].to_numpy().reshape(shape),
            whole["log_likelihood"].to_numpy().reshape(shape),
            float(whole[whole["epoch"] == epochs]["seconds"].mean()),
        )

    def values(self, objective: str) -> Array:
        """[m, S] values of an objective."""
        return OBJECTIVES[objective](self.mrr, self.log_likelihood)

    def only(self, other: Landscape) -> Landscape:
        """The architectures that another landscape has too."""
        theirs = {tuple(row) for row in other.bits}
        keep = np.array([tuple(row) in theirs for row in self.bits])
        return Landscape(self.name, self.bits[keep], self.mrr[keep], self.log_likelihood[keep], self.seconds)


@dataclass(frozen=True)
class Noise:
    """Seeds against architectures, both as standard deviations of one training."""

    seeds: float
    architectures: float

    @classmethod
    def of(cls, values: Array) -> Noise:
        """From [m, S] values: variance within and (less what the noise adds) between architectures."""
        within = values.var(1, ddof=1).mean()
        between = values.mean(1).var(ddof=1) - within / values.shape[1]
        return cls(float(np.sqrt(within)), float(np.sqrt(max(between, 0.0))))

    @property
    def ratio(self) -> float:
        """Noise over signal."""
        return self.seeds / self.architectures if self.architectures else float("inf")

    @property
    def reliability(self) -> float:
        """Share of one training's variance that is the architecture's."""
        return self.architectures**2 / (self.architectures**2 + self.seeds**2)


def agreement(values: Array, reference: Array) -> float:
    """Correlation of the noiseless values of two objectives.

    That between different seeds, so that shared noise does not count, over what noise leaves of it.
    """
    pairs = [(i, j) for i in range(values.shape[1]) for j in range(values.shape[1]) if i != j]
    seen = np.mean([np.corrcoef(values[:, i], reference[:, j])[0, 1] for i, j in pairs])
    return float(min(seen / np.sqrt(Noise.of(values).reliability * Noise.of(reference).reliability), 1.0))


def explained(bits: Array, values: Array) -> dict[str, float]:
    """Share of the differences between architectures that each component of the surrogate predicts out of sample.

    Ten-fold cross-validated R² of a Gaussian process with that kernel alone, over the share that is not noise.
    """
    space = SearchSpace(bits.shape[1] // 3)
    kernels = StructuredKernels(space)
    grams = kernels.gram(torch.from_numpy(bits), torch.from_numpy(bits)).numpy()
    y = (values.mean(1) - values.mean()) / values.mean(1).std()
    noise = Noise.of(values)
    ceiling = noise.architectures**2 / (noise.architectures**2 + noise.seeds**2 / values.shape[1])
    count = bits.sum(1)[:, None]
    alone = np.exp(-((count - count.T) ** 2) / (2 * 2.0**2))
    parts = {"number of parallel adapters": alone, **dict(zip(kernels.names, grams, strict=True))}
    parts["all components"] = grams.mean(0)
    return {name: _cross_validated(gram, y) / ceiling for name, gram in parts.items()}


def _cross_validated(gram: Array, y: Array) -> float:
    """R² of the held-out folds; amplitude and noise by marginal likelihood within the others."""
    fold = np.random.default_rng(0).permutation(len(y)) % FOLDS
    predicted = np.empty(len(y))
    for number in range(FOLDS):
        train, held = fold != number, fold == number
        inner = gram[np.ix_(train, train)]
        best = max((_fit(inner, y[train], ratio) for ratio in np.geomspace(0.003, 30, 12)), key=lambda fit: fit[0])
        predicted[held] = y[train].mean() + gram[np.ix_(held, train)] @ best[1]
    return float(1 - np.mean((y - predicted) ** 2) / y.var())


def _fit(gram: Array, y: Array, ratio: float) -> tuple[float, Array]:
    """Log marginal likelihood, amplitude at its maximum, and the weights of the prediction."""
    covariance = gram + ratio * np.eye(len(y))
    centred = y - y.mean()
    weights = np.linalg.solve(covariance, centred)
    _, log_det = np.linalg.slogdet(covariance)
    return -0.5 * len(y) * np.log(centred @ weights) - 0.5 * log_det, weights


def main_effects(landscape: Landscape) -> tuple[Array, Array]:
    """Effect [L, 3] on best-epoch MRR of making an adapter parallel, and its standard error: least squares."""
    y = landscape.values("MRR, best epoch").mean(1)
    x = np.column_stack([np.ones(len(y)), landscape.bits])
    inverse = np.linalg.pinv(x.T @ x)
    weights = inverse @ x.T @ y
    variance = ((y - x @ weights) ** 2).sum() / (len(y) - x.shape[1])
    errors = np.sqrt(variance * np.diag(inverse))
    return weights[1:].reshape(-1, 3), errors[1:].reshape(-1, 3)


def report(landscape: Landscape, variants: Sequence[Landscape], out: Path, console: Console) -> dict[str, object]:
    """Print, draw, and return the figures."""
    m, seeds, epochs = landscape.mrr.shape
    console.rule(
        f"{landscape.name}: {m} architectures × {seeds} seeds × {epochs} epochs, {landscape.seconds:.1f} s each"
    )
    reference = landscape.values("MRR, best epoch")
    figures = {name: _noise_row(landscape.values(name), reference) for name in OBJECTIVES}
    console.print(_noise_table("noise against signal", figures))
    for variant in variants:
        ours = landscape.only(variant)
        rows = {f"{name} (as above)": _noise_row(ours.values(name), ours.values(name)) for name in _JUDGED}
        rows |= {name: _noise_row(variant.values(name), ours.values("MRR, best epoch")) for name in _JUDGED}
        console.print(_noise_table(f"{variant.name}: {len(variant.bits)} architectures that both have", rows))
        figures |= {f"{variant.name}: {name}": row for name, row in rows.items()}
        orders = {name: _orders(variant.values(name), ours.values(name)) for name in _JUDGED}
        console.print(f"{variant.name}: Spearman's ρ with {landscape.name} itself:", orders)
        figures[f"{variant.name}: orders"] = orders
    shares = {name: explained(landscape.bits, landscape.values(name)) for name in _JUDGED}
    console.print(_shares_table(shares))
    early = {
        f"epoch {epoch + 1}": float(stats.spearmanr(landscape.mrr[:, :, epoch].mean(1), reference.mean(1)).statistic)
        for epoch in range(epochs)
    }
    console.print("Spearman's ρ with best-epoch MRR, means over seeds:", early)
    best = np.argsort(-reference.mean(1))[:5]
    console.print("best:", [(_letters(landscape.bits[i]), round(float(reference[i].mean()), 4)) for i in best])
    _draw(landscape, shares["MRR, best epoch"], out / f"landscape-{landscape.name}.png")
    return {"noise": figures, "explained": shares, "early": early}


_JUDGED = ("MRR, best epoch", "log-likelihood, best epoch")


def _orders(values: Array, reference: Array) -> dict[str, float]:
    """Rank correlations of architectures: means over seeds, and single trainings of different seeds."""
    seeds = range(values.shape[1])
    single = [stats.spearmanr(values[:, i], reference[:, j]).statistic for i in seeds for j in seeds if i != j]
    means = stats.spearmanr(values.mean(1), reference.mean(1)).statistic
    return {"means": round(float(means), 3), "single trainings": round(float(np.mean(single)), 3)}


def _noise_row(values: Array, reference: Array) -> dict[str, float]:
    noise = Noise.of(values)
    return {
        "mean": float(values.mean()),
        "seeds": noise.seeds,
        "architectures": noise.architectures,
        "noise_to_signal": noise.ratio,
        "agreement": agreement(values, reference),
    }


def _noise_table(title: str, rows: dict[str, dict[str, float]]) -> Table:
    table = Table("objective", "mean", "sd over seeds", "sd over architectures", "noise / signal", "order as MRR")
    table.title = title
    for name, row in rows.items():
        table.add_row(name, *(f"{value:.4f}" for value in list(row.values())[:3]), *(
            f"{row[key]:.2f}" for key in ("noise_to_signal", "agreement")
        ))  # fmt: skip
    return table


def _shares_table(shares: dict[str, dict[str, float]]) -> Table:
    table = Table("kernel alone", *shares, title="share of the differences predicted out of sample")
    for name in next(iter(shares.values())):
        table.add_row(name, *(f"{found[name]:.2f}" for found in shares.values()))
    return table


def _letters(bits: Array) -> str:
    letters = "".join("P" if bit else "S" for bit in bits)
    return "-".join(letters[i : i + 3] for i in range(0, len(letters), 3))


def _draw(landscape: Landscape, shares: dict[str, float], file: Path) -> None:
    mpl.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(1, 4, figsize=(13, 3.2), layout="constrained")
    values = landscape.values("MRR, best epoch")
    _draw_seeds(axes[0], values)
    _draw_counts(axes[1], landscape.bits.sum(1), values.mean(1))
    _draw_effects(axes[2], *main_effects(landscape))
    _draw_shares(axes[3], shares)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _draw_seeds(axis: Axes, values: Array) -> None:
    axis.plot(values[:, 0], values[:, 1], ".", ms=4, alpha=0.6, color="#2563eb")
    limits = [values.min(), values.max()]
    axis.plot(limits, limits, color="#999999", lw=0.8)
    axis.set(
        xlabel="validation MRR, seed 0", ylabel="seed 1", title=f"seeds: noise / signal {Noise.of(values).ratio:.2f}"
    )


def _draw_counts(axis: Axes, counts: Array, means: Array) -> None:
    jitter = np.random.default_rng(0).uniform(-0.2, 0.2, len(counts))
    axis.plot(counts + jitter, means, ".", ms=4, alpha=0.6, color="#2563eb")
    axis.set(xlabel="parallel adapters", ylabel="validation MRR", title="how many are parallel")


def _draw_effects(axis: Axes, effects: Array, errors: Array) -> None:
    bound = np.abs(effects).max()
    image = axis.imshow(effects, cmap="RdBu", vmin=-bound, vmax=bound, aspect="auto")
    for (layer, slot), effect in np.ndenumerate(effects):
        colour = "white" if abs(effect) > 0.6 * bound else "black"
        text = f"{effect:+.4f}\n±{errors[layer, slot]:.4f}"
        axis.text(slot, layer, text, ha="center", va="center", fontsize=7, color=colour)
    axis.set_xticks(range(3), SLOTS)
    axis.set_yticks(range(len(effects)), [f"layer {i + 1}" for i in range(len(effects))])
    axis.set(title="effect of making it parallel")
    axis.figure.colorbar(image, ax=axis, shrink=0.8)


def _draw_shares(axis: Axes, shares: dict[str, float]) -> None:
    names = list(shares)[::-1]
    axis.barh(names, [max(shares[name], 0.0) for name in names], color="#2563eb")
    axis.axvline(1.0, color="#999999", lw=0.8)
    axis.set(xlabel="share, out of sample", title="what predicts it")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="files under benchmarks/landscapes/ without .parquet")
    parser.add_argument("--quick", action="store_true", help="nothing is drawn into docs/")
    parser.add_argument("--out", type=Path, default=Path("docs/images"), help="folder of the pictures")
    options = parser.parse_args(arguments)
    files = sorted(LANDSCAPES.glob("*.parquet"))
    names = options.names or [file.stem for file in files if "-" not in file.stem]
    out = Path("runs/landscapes") if options.quick else options.out
    figures = {}
    for name in names:
        variants = [Landscape.read(file) for file in files if file.stem.startswith(f"{name}-")]
        figures[name] = report(Landscape.read(LANDSCAPES / f"{name}.parquet"), variants, out, Console())
    print(json.dumps({"benchmark": "landscape_report", **figures}))


if __name__ == "__main__":
    main()
