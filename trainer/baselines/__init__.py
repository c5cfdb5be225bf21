"""Models that every study is compared with."""

from trainer.baselines.base import Reference, evaluate, reference_ranks
from trainer.baselines.neighbours import Neighbours
from trainer.baselines.popularity import Popularity

REFERENCES: dict[str, type[Reference]] = {"popularity": Popularity, "neighbours": Neighbours}
"""References without training, by the name that they have in a study's table."""

__all__ = ["REFERENCES", "Reference", "evaluate", "reference_ranks"]
