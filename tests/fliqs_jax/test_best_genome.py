"""The best genome within joint costs against trying all, on small spaces."""

import itertools

import numpy as np
import pytest

from fliqs_jax import best_genome
from hwcost import pricing
from hwcost.pricing import Budget, Term
from hwcost.space import Decision, SearchSpace


def random_case(seed, budgets):
    """A space of 6 decisions and all its genomes; losses that fall, and joint costs that mostly rise, with options."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(2, 5, 6)
    space = SearchSpace(tuple(Decision(f"d{i}", tuple("wxyz"[:count])) for i, count in enumerate(counts)))
    losses = -np.sort(-rng.exponential(size=space.exists.shape), axis=1)
    tables = []
    for _ in range(budgets):
        terms = []
        for _ in range(7):
            among = rng.choice(6, rng.integers(1, 4), replace=False)
            values = rng.uniform(0.5, 1.5, counts[among]) * (1 + np.indices(counts[among])).prod(axis=0)
            terms.append(Term(tuple(f"d{i}" for i in among), values))
        tables.append(pricing.build(space, terms))
    genomes = np.asarray(list(itertools.product(*map(range, counts))))
    return space, losses, tables, genomes


def case_with_targets(seed, budgets, quantile):
    """A random case, its budgets, and the best genome by trying all."""
    space, losses, tables, genomes = random_case(seed, budgets)
    prices = np.stack([pricing.price_layers(table, genomes).sum(axis=1) for table in tables], axis=1)
    targets = prices[np.argsort((prices / prices.mean(axis=0)).max(axis=1))[int(quantile * len(genomes))]]
    total = losses[np.arange(6), genomes].sum(axis=1)
    affordable = (prices <= targets * (1 + 1e-12)).all(axis=1)
    best = genomes[np.where(affordable, total, np.inf).argmin()]
    return space, losses, list(map(Budget, tables, targets)), best, np.ptp(total)


@pytest.mark.parametrize("budgets", [1, 2])
@pytest.mark.parametrize("quantile", [0.0, 0.05, 0.5])
def test_it_keeps_the_budgets_and_is_mostly_the_best(budgets, quantile):
    misses = []
    for seed in range(6):
        space, losses, limits, best, spread = case_with_targets(seed, budgets, quantile)
        found = best_genome.best_within_budgets(space, losses, limits)
        assert found.dtype == np.int32
        assert all(pricing.price_exactly(table, found) <= target * (1 + 1e-12) for table, target in limits)
        misses.append((losses[np.arange(6), found].sum() - losses[np.arange(6), best].sum()) / spread)
    assert max(misses) < 0.1
    assert np.count_nonzero(np.asarray(misses) > 1e-9) <= 2


def test_it_begins_near_genomes_that_are_given_too():
    space, losses, limits, best, _ = case_with_targets(2, 2, 0.05)
    assert best_genome.best_within_budgets(space, losses, limits).tolist() != best.tolist()
    assert best_genome.best_within_budgets(space, losses, limits, [best]).tolist() == best.tolist()


def test_the_mode_is_taken_where_it_fits_and_what_cannot_fit_is_refused():
    space, losses, (table,), genomes = random_case(0, 1)
    prices = pricing.price_layers(table, genomes).sum(axis=1)
    mode = np.where(space.exists, losses, np.inf).argmin(axis=1)
    assert best_genome.best_within_budgets(space, losses, [Budget(table, prices.max())]).tolist() == mode.tolist()
    with pytest.raises(
        ValueError, match=r"no genome was found that keeps all budgets: the nearest costs 1\.0101 × one"
    ):
        best_genome.best_within_budgets(space, losses, [Budget(table, 0.99 * prices.min())])
