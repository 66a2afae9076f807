import itertools

import numpy as np
import pytest

from aqt_like.formats import format_space
from fliqs_jax import assignment
from hwcost import analytic
from hwcost.format_plan import format_plan
from hwcost.workload import LayerSpec

FORMATS = format_space("int_s")


def random_options(seed, decisions=6, options=3):
    rng = np.random.default_rng(seed)
    cost = np.sort(rng.uniform(1, 20, (decisions, options)), axis=1)
    loss = -np.sort(-rng.exponential(1, (decisions, options)), axis=1)
    loss[0, -1] = cost[0, -1] = np.inf  # a decision with one option fewer
    return assignment.Options(loss, cost)


def best_by_trying_all(choices, budget):
    rows = np.arange(len(choices.loss))
    best = np.inf
    for genome in itertools.product(range(choices.loss.shape[1]), repeat=len(rows)):
        if choices.cost[rows, genome].sum() <= budget:
            best = min(best, choices.loss[rows, genome].sum())
    return best


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("slack", [0.0, 0.2, 0.5, 1.0])
def test_knapsack_is_exact_and_greedy_is_feasible(seed, slack):
    choices = random_options(seed)
    rows = np.arange(6)
    lowest, highest = choices.cost.min(1).sum(), np.where(np.isinf(choices.cost), 0, choices.cost).max(1).sum()
    budget = lowest + slack * (highest - lowest) + 1e-9
    exact, greedy = assignment.knapsack(choices, budget), assignment.greedy(choices, budget)
    for genome in (exact, greedy):
        assert choices.cost[rows, genome].sum() <= budget
    total = choices.loss[rows, exact].sum()
    assert total == pytest.approx(best_by_trying_all(choices, budget))
    assert total <= choices.loss[rows, greedy].sum() + 1e-12


def test_budgets_below_the_cheapest_are_refused():
    for method in (assignment.greedy, assignment.knapsack):
        with pytest.raises(ValueError, match=r"budget 1 is below the cheapest genome, which costs"):
            method(random_options(0), 1.0)


def test_layers_that_share_a_decision_add_up():
    layers = tuple(
        LayerSpec(path, "dense", 4, 4, (), (), (), (), 1, macs=macs, weights=16)
        for path, macs in (("a/query", 10), ("a/key", 20), ("b", 5))
    )
    plan = format_plan(layers, FORMATS, ["query|key: int4,bf16 tie"])
    losses = np.asarray([[3.0, 2.0, 1.0], [30.0, 20.0, 10.0], [0.3, 0.2, 0.1]])
    choices = assignment.options(plan, analytic.BIT_OPERATIONS.table(plan), losses)
    np.testing.assert_allclose(choices.loss, [[33, 11, np.inf], [0.3, 0.2, 0.1]])
    np.testing.assert_allclose(choices.cost, [[30 * 16, 30 * 256, np.inf], [5 * 16, 5 * 64, 5 * 256]])
    np.testing.assert_array_equal(assignment.knapsack(choices, 30 * 16 + 5 * 64), [0, 1])


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("budgets", [1, 2, 3])
def test_the_best_genome_within_several_budgets_is_exact(seed, budgets):
    losses, _ = random_options(seed)
    rng = np.random.default_rng(100 + seed)
    costs = np.sort(rng.uniform(1, 20, (budgets, *losses.shape)), axis=2)
    costs /= (1.6 * costs[..., 0].sum(axis=1))[:, None, None]
    rows = np.arange(len(losses))
    affordable = [
        genome
        for genome in itertools.product(range(losses.shape[1]), repeat=len(rows))
        if (costs[:, rows, genome].sum(axis=1) <= 1).all() and np.isfinite(losses[rows, genome].sum())
    ]
    best = min(losses[rows, genome].sum() for genome in affordable)
    found = assignment.best_within(losses, costs)
    assert tuple(found) in affordable
    assert losses[rows, found].sum() == pytest.approx(best, rel=1e-6)
    with pytest.raises(ValueError, match=r"below the cheapest genome|no genome keeps all budgets"):
        assignment.best_within(losses, 2 * costs)


def test_a_budget_is_met_exactly_where_only_its_limit_fits():
    """Two costs whose limits are those of the cheapest genome, to the last digit."""
    losses = np.asarray([[1.0, 0.0], [1.0, 0.5]])
    costs = np.asarray([[[0.1, 0.4], [0.9, 0.95]], [[0.3, 0.3], [0.7, 0.9]]])
    assert assignment.best_within(losses, costs).tolist() == [0, 0]


@pytest.mark.parametrize("seed", range(4))
def test_the_front_has_each_genome_that_no_cheaper_one_matches(seed):
    choices = random_options(seed, decisions=4)
    rows = np.arange(4)
    every = [g for g in itertools.product(range(3), repeat=4) if np.isfinite(choices.loss[rows, g]).all()]
    costs, losses = (np.asarray([values[rows, g].sum() for g in every]) for values in (choices.cost, choices.loss))
    best = [i for i in np.argsort(costs) if not (losses[costs < costs[i]] <= losses[i]).any()]
    np.testing.assert_array_equal(assignment.front(choices), [every[i] for i in best])


def test_bisection_finds_the_cheapest_that_holds():
    costs = np.geomspace(1, 10, 200)
    asked = []

    def holds_from(first):
        asked.clear()
        return lambda i: asked.append(i) or i >= first

    for first in range(200):
        assert assignment.cheapest_that_holds(costs, holds_from(first), within=0.0) == first
        assert len(set(asked)) == len(asked) <= 10
    assert assignment.cheapest_that_holds(costs, lambda i: False) is None
    assert costs[150] <= costs[assignment.cheapest_that_holds(costs, lambda i: i >= 150)] <= 1.01 * costs[150]
    assert assignment.cheapest_that_holds(costs[:1], lambda i: True) == 0


@pytest.mark.parametrize("seed", range(20))
def test_the_cheapest_genome_fits_a_budget_of_its_own_cost(seed):
    """Sums in another order, and of costs over a target, differ in their last digits."""
    rng = np.random.default_rng(seed)
    costs = np.sort(10.0 ** rng.uniform(-9, 0, (12, 3)), axis=1)
    losses = -np.sort(-rng.exponential(size=(12, 3)), axis=1)
    target = costs[::-1, 0].sum()
    assert assignment.front(assignment.Options(losses, costs), target).tolist()[0] == [0] * 12
    for count in (1, 2):
        assert assignment.best_within(losses, np.stack([costs / target] * count)).shape == (12,)
