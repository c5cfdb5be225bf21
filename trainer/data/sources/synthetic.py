"""A made-up shop with a planted truth.

Every item has a theme (told by two words of its title), a noun (what it is; nouns of one category form a chain, and the
last leads to the first of the next category) and a brand. Every user has one favourite brand, drawn uniformly. With
x_1 … x_t bought so far, the next item j is drawn with

    log p(j) = popularity_j
             + text  × ([theme_j = theme of x_t] + ½ [theme_j = theme of x_{t-1}])
             + order × [noun_j goes after the noun of x_t]
             + taste × [brand_j = the user's favourite brand]  + constant,       no item twice.

- *text*: "coral marine tripod" follows "wave blue lens". A theme has four words and a title shows two of them, so the
  relation lies in what words mean; it holds for an item that was bought twice as for one that was bought often.
- *order*: camera → lens → tripod, never backwards. Only who knows which item was the last can use it.
- *taste*: shows in every step a little and never through the last item alone, so it takes the whole history, or a
  vector learned for the user.

`Truth.oracle` is the best prediction from a history: favourite brand integrated out by Bayes' rule. It says what can be
reached, and, with a cue left out, what that cue is worth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from trainer.config import NonNegative, Positive, Section
from trainer.data.sources.base import RawData, Source
from trainer.errors import BadInput

THEMES = (
    ("blue", "coral", "marine", "wave"),
    ("green", "pine", "moss", "fern"),
    ("sand", "cactus", "dune", "amber"),
    ("black", "lunar", "midnight", "star"),
    ("white", "arctic", "frost", "polar"),
    ("red", "ember", "flame", "lava"),
    ("vintage", "classic", "antique", "retro"),
    ("smart", "digital", "laser", "turbo"),
    ("junior", "toy", "playful", "mini"),
    ("gold", "velvet", "royal", "silk"),
    ("oak", "barn", "rustic", "linen"),
    ("pro", "racing", "athletic", "rapid"),
)
CATEGORIES = {
    "photo": ("camera", "lens", "tripod", "filter", "album"),
    "coffee": ("grinder", "kettle", "dripper", "mug", "tray"),
    "garden": ("spade", "seeds", "planter", "hose", "pruner"),
    "cycling": ("bike", "saddle", "pedals", "helmet", "lock"),
    "painting": ("canvas", "easel", "brush", "palette", "varnish"),
    "camping": ("tent", "mattress", "lantern", "stove", "cooler"),
}
NOUNS = tuple((noun, category) for category, nouns in CATEGORIES.items() for noun in nouns)
BRANDS = ("Aldo", "Brix", "Corvo", "Denzo", "Elko", "Fargo", "Gilda", "Hobart")
CUES = ("text", "order", "taste")

_SHORTEST, _LONGEST = 5, 40
_POPULARITY_SPREAD = 0.5


class SyntheticOptions(Section):
    """Size, seed and the strength of each cue; a strength of 0 takes a cue away."""

    users: Positive = Field(1200, description="Users.")
    items: Annotated[int, Field(ge=2 * _LONGEST)] = Field(300, description="Items.")
    mean_length: Annotated[float, Field(ge=_SHORTEST, le=20)] = Field(9.0, description="Mean interactions of a user.")
    seed: Annotated[int, Field(ge=0)] = Field(0, description="Seed of the catalogue and of the users.")
    text: NonNegative = Field(2.5, description="Log-weight of a shared theme.")
    order: NonNegative = Field(3.0, description="Log-weight of what goes after the last item.")
    taste: NonNegative = Field(2.5, description="Log-weight of the favourite brand.")


@dataclass(frozen=True, eq=False)
class Truth:
    """The catalogue with what generates its interactions. Make one with `Truth.plant`.

    Args:
        options: strengths and seed.
        theme, noun, brand: [items] indices into THEMES, NOUNS, BRANDS.
        popularity: [items] log-weights.
        titles: [items].
    """

    options: SyntheticOptions
    theme: NDArray[np.int64]
    noun: NDArray[np.int64]
    brand: NDArray[np.int64]
    popularity: NDArray[np.float64]
    titles: list[str]

    @classmethod
    def plant(cls, options: SyntheticOptions) -> Truth:
        """Draw a catalogue; nouns, themes and brands are spread evenly, in independent random orders."""
        rng = np.random.default_rng([options.seed, 0])
        theme, noun, brand = (
            rng.permutation(np.arange(options.items) % count) for count in (len(THEMES), len(NOUNS), len(BRANDS))
        )
        popularity = rng.normal(0.0, _POPULARITY_SPREAD, options.items)
        titles: dict[str, None] = {}
        for t, n in zip(theme, noun, strict=True):
            words = " ".join(rng.permutation(THEMES[t])[:2])
            title, model = f"{words} {NOUNS[n][0]}", 1
            while title in titles:
                model += 1
                title = f"{words} {NOUNS[n][0]} {model}"
            titles[title] = None
        return cls(options, theme, noun, brand, popularity, list(titles))

    def log_weights(self, history: Sequence[int], cues: Sequence[str] = CUES) -> NDArray[np.float64]:
        """All but taste: [items] log-weights of the next item after `history`, oldest first."""
        weights = self.popularity.copy()
        if len(history):
            if "text" in cues:
                for age, item in enumerate(history[:-3:-1]):
                    weights[self.theme == self.theme[item]] += self.options.text * 0.5**age
            if "order" in cues:
                weights[self.noun == (self.noun[history[-1]] + 1) % len(NOUNS)] += self.options.order
            weights[list(history)] = -np.inf
        return weights

    def history(self, length: int, rng: np.random.Generator) -> list[int]:
        """Draw one user's items, oldest first."""
        favourite = self.options.taste * (self.brand == rng.integers(len(BRANDS)))
        items: list[int] = []
        for _ in range(length):
            gumbel = rng.gumbel(size=len(self.titles))
            items.append(int(np.argmax(self.log_weights(items) + favourite + gumbel)))
        return items

    def oracle(self, history: Sequence[int], cues: Sequence[str] = CUES) -> NDArray[np.float64]:
        """p(next item | history), [items]: what no model can beat.

        Args:
            history: item indices of the catalogue, oldest first.
            cues: those that the oracle may use; it believes that the others do not exist.
        """
        strength = self.options.taste if "taste" in cues else 0.0
        log_posterior = np.zeros(len(BRANDS))
        for step, item in enumerate(history):
            log_posterior[self.brand[item]] += strength
            log_posterior -= np.log(self._normalisers(np.exp(self.log_weights(history[:step], cues)), strength))
        posterior = np.exp(log_posterior - log_posterior.max())
        posterior /= posterior.sum()
        weights = np.exp(self.log_weights(history, cues))
        share = posterior / self._normalisers(weights, strength)
        return weights * (share.sum() + np.expm1(strength) * share[self.brand])

    def _normalisers(self, weights: NDArray[np.float64], strength: float) -> NDArray[np.float64]:
        """Σ_j weight_j exp(strength [brand_j = b]) for each favourite brand b, [brands]."""
        by_brand = np.bincount(self.brand, weights, len(BRANDS))
        return weights.sum() + np.expm1(strength) * by_brand


def item_name(index: int) -> str:
    """Id of the catalogue's item `index`."""
    return f"item-{index:05d}"


def _read(path: Path | None, options: SyntheticOptions) -> RawData:
    if path is not None:
        raise BadInput(f"the synthetic format makes its own data; leave the source {str(path)!r} out")
    truth = Truth.plant(options)
    rng = np.random.default_rng([options.seed, 1])
    extra = rng.geometric(1 / (1 + options.mean_length - _SHORTEST), options.users) - 1
    lengths = np.minimum(_SHORTEST + extra, _LONGEST)
    histories = [truth.history(length, rng) for length in lengths]
    return RawData(
        item_ids=[item_name(item) for item in range(options.items)],
        attributes={
            "title": truth.titles,
            "brand": [BRANDS[brand] for brand in truth.brand],
            "categories": [NOUNS[noun][1] for noun in truth.noun],
        },
        user_ids=[f"user-{user:05d}" for user in range(options.users)],
        users=np.repeat(np.arange(options.users, dtype=np.int32), lengths),
        items=np.concatenate(histories).astype(np.int32),
        times=np.concatenate([np.arange(length) for length in lengths]),
        dated=False,
        rules=[f"Drew a synthetic shop of {options.items} items and {options.users} users, seed {options.seed}."],
    )


SYNTHETIC = Source(SyntheticOptions, _read)
