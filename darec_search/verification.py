"""Whether an export does what the study measured: a fresh process ranks a sample of users with nothing but its files.

python -m darec_search.verification MODEL DATASET
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from darec_search.card import read_card
from trainer.data.dataset import Dataset
from trainer.errors import BadInput
from trainer.storage import absolute

SAMPLED = 256
"""Users of the sample at most."""


class NotReproduced(RuntimeError):  # noqa: N818 - reads as what it is where it is raised
    """An export does not do what the study measured."""


@dataclass(frozen=True)
class Verified:
    """What a fresh process found."""

    split: str
    users: int
    mrr: float
    recorded: float

    def __str__(self) -> str:
        return (
            f"a fresh process ranked {self.users} {self.split} users: MRR {self.mrr:.6f}, recorded {self.recorded:.6f}"
        )


def verify(model: Path, data: str) -> Verified:
    """Let a fresh process reproduce the recorded metric.

    Args:
        model: the exported folder, of format `torch` or `onnx-scores`.
        data: the dataset that it was trained on.

    Raises:
        NotReproduced: if it cannot.
    """
    here = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    ran = subprocess.run(
        [sys.executable, "-m", "darec_search.verification", str(model.absolute()), absolute(data)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )
    if ran.returncode:
        reason = ran.stderr.strip().splitlines()[-1:] or [f"exit code {ran.returncode}"]
        raise NotReproduced(f"the export is not kept: a fresh process could not use it ({reason[0]})")
    found = Verified(**json.loads(ran.stdout))
    sample = read_card(model).sample
    if sample is None or not abs(found.mrr - found.recorded) <= sample.tolerance:
        raise NotReproduced(
            f"the export is not kept: a fresh process found MRR {found.mrr:.6f} for {found.users} {found.split} users, "
            f"but the study recorded {found.recorded:.6f}; promote the study again"
        )
    return found


def reproduce(model: Path, data: str) -> Verified:
    """Rank the sample's users in this process.

    Raises:
        BadInput: if the card has no sample, the dataset is another one, or the export cannot be used.
    """
    card, dataset = read_card(model), Dataset.open(data)
    if card.sample is None:
        raise BadInput(f"{model}: its card records no sample of users; export it again")
    if dataset.fingerprint != card.fingerprint:
        raise BadInput(f"{data}: is not the dataset that {model} was trained on; name that one")
    chosen, split = evenly(np.arange(dataset.n_users), card.sample.users), card.sample.split
    if split == "test":
        dataset = dataset.unsealed(f"verification of an export of study {card.study}, which has been tested")
    if card.format == "onnx-scores":
        from darec_search.onnx_export import ranks_of

        ranks = ranks_of(model, dataset, split, chosen)
    else:
        from darec_search.recommender import load

        trained = load(model).trained
        ranks = trained.rank(dataset, split, known_users=True, chosen=chosen).ranks.numpy()
    return Verified(split, len(chosen), float((1 / ranks).mean()), card.sample.mrr)


def evenly(values: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """At most `count` of the values at even steps, the first one among them."""
    taken = min(count, len(values))
    return values[np.arange(taken) * len(values) // max(taken, 1)]


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asdict(reproduce(Path(sys.argv[1]), sys.argv[2]))))
