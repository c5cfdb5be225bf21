"""Tables over few relevant bits: against enumeration, found where there is one, out of the way elsewhere."""

import itertools
import math

import numpy as np
import pytest
import torch

from darec_search.samplers import create
from darec_search.samplers.base import Observation
from darec_search.samplers.kernels import StructuredKernels
from darec_search.samplers.proposer import Proposer
from darec_search.samplers.tables import NOISE, RHO, Tables, WithTables, find_tables
from darec_search.space import Point, SearchSpace

WEIGHTED = SearchSpace(2, weights={"align": (0.1, 0.3, 1.0), "contrastive": (0.1,), "collaborative": (0.01, 0.1)})


def drawn(space: SearchSpace, count: int, seed: int = 0) -> list[Point]:
    rng = np.random.default_rng(seed)
    return [space.sample(rng) for _ in range(count)]


def encoded(space: SearchSpace, points: list[Point]) -> torch.Tensor:
    return torch.from_numpy(np.stack([space.encode(point) for point in points]))


def literal(a: np.ndarray, b: np.ndarray, relevant: list[int], rho: float) -> float:
    """k_S of two encoded points of `WEIGHTED`, as in the module's docstring."""
    differing = sum(a[i] != b[i] for i in relevant)
    levels = math.prod(math.exp(-((a[i] - b[i]) ** 2) / (2 * 1.5**2)) for i in (6, 7, 8))
    return rho**differing * levels


def planted(bits: int, relevant: list[int], count: int, noise: float, seed: int = 0):
    """Random designs of a random table over some bits."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 2, (count, bits)).astype(float)
    table = rng.normal(size=2 ** len(relevant))
    cells = x[:, relevant] @ 2 ** np.arange(len(relevant))
    y = table[cells.astype(int)] + noise * rng.normal(size=count)
    return torch.from_numpy(x), torch.from_numpy((y - y.mean()) / y.std()), table


def test_a_table_is_the_covariance_of_its_docstring() -> None:
    x = encoded(WEIGHTED, drawn(WEIGHTED, 12))
    structured = StructuredKernels(WEIGHTED)
    sets = torch.tensor([[1, 0, 0, 1, 1, 0], [0, 0, 0, 0, 0, 0]], dtype=torch.float64)
    tables = Tables(sets, torch.tensor([0.2, 0.5], dtype=torch.float64), torch.ones(2), torch.zeros(2))
    kernels = WithTables(structured, structured, tables)
    gram = kernels.gram(x, x)
    assert torch.equal(gram[:-2], structured.gram(x, x))
    for found, relevant, rho in ((gram[-2], [0, 3, 4], 0.2), (gram[-1], [], 0.5)):
        expected = [[literal(a, b, relevant, rho) for b in x.numpy()] for a in x.numpy()]
        assert torch.allclose(found, torch.tensor(expected, dtype=torch.float64))
        assert torch.linalg.eigvalsh(found).min() > -1e-9
    assert torch.allclose(kernels.diagonal(x), gram.diagonal(dim1=1, dim2=2), atol=1e-12)


def test_the_evidence_is_that_of_all_sets_by_enumeration() -> None:
    """With four bits the beam meets all 16 sets at all settings."""
    space = SearchSpace(2, slots=2)
    x, y, _ = planted(4, [1, 2], 14, 0.5)
    scale = torch.linspace(0.5, 2, 14, dtype=torch.float64)
    by_set = {}
    for relevant in itertools.chain.from_iterable(itertools.combinations(range(4), size) for size in range(5)):
        total = 0.0
        for rho, noise in itertools.product(RHO, NOISE):
            differing = np.array([[sum(a[i] != b[i] for i in relevant) for b in x.numpy()] for a in x.numpy()])
            covariance = 1 + rho**differing + noise * np.diag(scale.numpy())
            fit = y.numpy() @ np.linalg.solve(covariance, y.numpy())
            likelihood = -(14 + 2) / 2 * math.log(fit + 2) - np.linalg.slogdet(covariance)[1] / 2
            prior = 1 / (5 * math.comb(4, len(relevant)) * len(RHO) * len(NOISE))
            total += math.exp(likelihood) * prior
        by_set[relevant] = math.log(total)
    tables = find_tables(StructuredKernels(space), x, y, scale)
    everything = math.log(sum(math.exp(value) for value in by_set.values()))
    assert float(torch.logsumexp(tables.log_evidence, 0)) == pytest.approx(everything, abs=1e-6)
    first = tuple(tables.sets[0].nonzero()[:, 0].tolist())
    assert first == max(by_set, key=by_set.__getitem__)
    ratio = float(tables.log_evidence[0] - tables.log_evidence[1])
    second = tuple(tables.sets[1].nonzero()[:, 0].tolist())
    assert ratio == pytest.approx(by_set[first] - by_set[second])


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("count", [60, 90, 150, 300])
def test_planted_bits_are_found_among_36(count: int, seed: int) -> None:
    relevant = [4, 11, 19, 30]
    x, y, _ = planted(36, relevant, count, 0.3, seed)
    tables = find_tables(StructuredKernels(SearchSpace(12)), x, y, torch.ones(count, dtype=torch.float64))
    assert tables.sets[0].nonzero()[:, 0].tolist() == relevant


def test_tables_lead_where_few_bits_matter_and_are_left_out_where_effects_add_up() -> None:
    space = SearchSpace(12)
    x, y, table = planted(36, [4, 11, 19, 30], 60, 0.3)
    told = [Observation(space.decode(row.numpy()), float(value)) for row, value in zip(x, y, strict=True)]
    proposer = Proposer(space)
    model, components = proposer.model(told), len(StructuredKernels(space))
    assert float(model.weights @ model.weightings[:, components:].sum(1)) > 0.99
    # The best cell of the table is believed to be best, wherever the other bits are.
    best = np.argmax(table)
    probe = torch.from_numpy(np.random.default_rng(1).integers(0, 2, (200, 36)).astype(float))
    cells = (probe[:, [4, 11, 19, 30]] @ torch.tensor([1.0, 2, 4, 8], dtype=torch.float64)).long()
    assert int(cells[model.mean(probe).argmax()]) == best

    effects = np.random.default_rng(2).normal(size=36)
    added = [Observation(o.point, float((1 - 2 * np.array(o.point.bits)) @ effects)) for o in told]
    assert torch.equal(proposer.model(added).mean(probe), proposer.model(added, tables=False).mean(probe))


def test_a_search_of_a_table_tries_its_cells_and_not_the_irrelevant_bits() -> None:
    """All 16 cells or nearly all; without tables it is eight or nine."""
    space, relevant = SearchSpace(12), [4, 11, 19, 30]
    rng = np.random.default_rng(5)
    table = rng.normal(size=16)
    sampler, tried = create("ax_bayes", space, 0), set()
    for _ in range(60):
        point = sampler.ask()
        cell = sum(point.bits[bit] << place for place, bit in enumerate(relevant))
        tried.add(cell)
        sampler.tell(point, float(table[cell] + 0.3 * rng.normal()))
    assert len(tried) >= 13


@pytest.mark.filterwarnings("ignore:A not p.d., added jitter")
def test_designs_that_differ_in_irrelevant_bits_alone_have_a_joint_posterior() -> None:
    """Their covariance matrix is singular."""
    space = SearchSpace(12)
    x, y, _ = planted(36, [4, 11, 19, 30], 60, 0.3)
    told = [Observation(space.decode(row.numpy()), float(value)) for row, value in zip(x, y, strict=True)]
    alike = x[:1].repeat(5, 1)
    alike[:, 0] = torch.tensor([0, 1, 0, 1, 0])
    alike[:, 1] = torch.tensor([0, 0, 1, 1, 0])
    posterior = Proposer(space).model(told).posterior(alike[None])
    samples = posterior.rsample(torch.Size([4]))
    assert samples.isfinite().all()


def test_tables_stand_beside_the_prior_means_of_old_studies() -> None:
    """They have none themselves, and with an old study of the same table it is still the table that leads."""
    space = SearchSpace(12)
    (x, y, table), (old_x, old_y, _) = planted(36, [4, 11, 19, 30], 60, 0.3), planted(36, [4, 11, 19, 30], 60, 2.0, 3)
    told, old = (
        [Observation(space.decode(row.numpy()), float(value)) for row, value in zip(points, values, strict=True)]
        for points, values in ((x, y), (old_x, old_y))
    )
    proposer = Proposer(space)
    proposer.learn_from([old])
    model = proposer.model(told)
    of_tables = model.weightings[:, len(StructuredKernels(space)) + 1 :].sum(1) > 0
    assert float(model.weights[of_tables].sum()) > 0.5
    assert model.trend is not None
    assert not model.trend.slopes[of_tables].any()
    probe = torch.from_numpy(np.random.default_rng(1).integers(0, 2, (200, 36)).astype(float))
    cells = (probe[:, [4, 11, 19, 30]] @ torch.tensor([1.0, 2, 4, 8], dtype=torch.float64)).long()
    assert int(cells[model.mean(probe).argmax()]) == int(np.argmax(table))


def test_loss_weights_take_part() -> None:
    """A table over bits whose value a loss weight lowers: the believed best level is the true one."""
    rng, told = np.random.default_rng(0), []
    for point in drawn(WEIGHTED, 40, 3):
        value = 2.0 * (point.bits[1] ^ point.bits[4]) + 1.5 * (point.weights["align"] == 0.1)
        told.append(Observation(point, float(value + 0.2 * rng.normal())))
    model = Proposer(WEIGHTED).model(told)
    best = [Point((0, 1, 0, 0, 0, 0), {"align": level, "contrastive": 0.1, "collaborative": 0.1}) for level in (0.1, 1)]
    high, low = model.mean(encoded(WEIGHTED, best)).tolist()
    assert high - low > 1
