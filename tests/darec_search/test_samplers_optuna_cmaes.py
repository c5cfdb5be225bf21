import cmaes
import numpy as np
import optuna
import pytest

from darec_search.samplers import create
from darec_search.space import Point, SearchSpace

SPACE = SearchSpace(4, weights={"align": [0.1, 0.5, 1.0], "collaborative": [0.5]})


def value(point: Point) -> float:
    return sum(point.bits) + 3 * point.weights["align"]


def test_the_strategy_takes_in_every_generation() -> None:
    """Against the package `cmaes` told the same generations; a third one is under way."""
    sampler, rng, population = create("optuna_cmaes", SPACE, 0), np.random.default_rng(0), 11
    bounds = np.tile([0.0, 1.0], (13, 1))
    strategy = cmaes.CMA(mean=np.full(13, 0.5), sigma=1 / 6, bounds=bounds, population_size=population)
    names, levels = list(sampler._distributions())[:13], np.array([2] * 12 + [3])
    order = sorted(range(13), key=names.__getitem__)  # Optuna sorts parameters by name
    for _ in range(2):
        generation = []
        for _ in range(population):
            point = SPACE.sample(rng)
            sampler.tell(point, value(point))
            # k levels are the centres of k equal parts of the unit interval
            unit = (SPACE.encode(point)[:13] + 0.5) / levels
            generation.append((unit[order], -value(point)))
        strategy.tell(generation)
    for _ in range(3):
        sampler.tell(SPACE.sample(rng), 0.0)
    study = optuna.create_study(direction="maximize", sampler=sampler._sampler(0))
    sampler._add_results(study)
    study.ask(sampler._distributions())
    restored = study.sampler._restore_optimizer(study.get_trials(deepcopy=False)[:-1])
    assert strategy.generation == restored.generation == 2
    assert np.allclose(restored.mean, strategy.mean)
    assert np.allclose(restored._C, strategy._C)
    assert restored._sigma == pytest.approx(strategy._sigma)


def test_it_climbs() -> None:
    """A strategy that lost its state would go on drawing around the middle: half of the bits."""
    space = SearchSpace(5)
    sampler, bits = create("optuna_cmaes", space, 0), []
    for _ in range(60):
        point = sampler.ask()
        bits.append(sum(point.bits))
        sampler.tell(point, float(sum(point.bits)))
    assert np.mean(bits[:12]) < 9
    assert np.mean(bits[-12:]) > 11


def test_population_is_an_option() -> None:
    sampler = create("optuna_cmaes", SPACE, 0, population=4)
    assert sampler._sampler(0)._popsize == 4
