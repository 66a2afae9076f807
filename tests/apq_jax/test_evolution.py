import dataclasses
import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from apq_jax import architectures, evolution, selection, within_budgets
from apq_jax.architecture_space import Stage
from apq_jax.evolution import Settings
from apq_jax.within_budgets import BudgetError
from hwcost import pricing
from hwcost.costs import COSTS

DIGITS = dataclasses.replace(architectures.find("digits"), excluded=(5, 2))
SHORT = Settings(population=40, parents=10, generations=30)
ONE = {"bit_operations": DIGITS.cost_table(COSTS["bit_operations"])}
THREE = {name: DIGITS.cost_table(COSTS[name]) for name in ("bit_operations", "weight_bytes", "peak_activation_bytes")}

traced = 0


def predict(space, weights, genomes):
    global traced  # noqa: PLW0603
    traced += 1
    return jax.nn.relu(space.features(genomes) @ weights[0]) @ weights[1]


def weights_of(seed, space=DIGITS):
    keys = jax.random.split(jax.random.key(seed))
    features = space.features(space.smallest).shape[0]
    return jax.random.normal(keys[0], (features, 32)), jax.random.normal(keys[1], (32,))


PREDICT_DIGITS = functools.partial(predict, DIGITS)


def predictor(seed):
    """A fitness of random weights."""
    return Partial(PREDICT_DIGITS, weights_of(seed))


@functools.cache
def small_evolution(select=selection.fittest):
    return evolution.make(DIGITS, ONE, SHORT, select)


def lowest(table, space=DIGITS):
    return pricing.price_exactly(table, within_budgets.cheapest(space, {"cost": table}, [np.inf]))


networks = jax.vmap(DIGITS.canonical)


def check(result, tables, limits):
    """All genomes are valid, within the limits, and cost what is said."""
    for genomes, costs, row in zip(result.genomes, result.costs, limits, strict=True):
        assert (genomes >= 0).all()
        assert (genomes < DIGITS.search_space.option_counts).all()
        assert np.asarray(DIGITS.is_valid(genomes)).all()
        exact = [[pricing.price_exactly(table, genome) for table in tables.values()] for genome in genomes]
        np.testing.assert_array_equal(costs, exact)
        assert (costs <= row).all()


def test_genomes_are_valid_within_limits_and_differ():
    least = lowest(ONE["bit_operations"])
    for factors in ((1.0, 1 + 1e-9, 1.001), (1.3, 3.0, 100.0)):
        limits = [[least * factor] for factor in factors]
        result = small_evolution().evolve(predictor(0), limits, jax.random.key(0))
        check(result, ONE, limits)
        assert np.isfinite(result.fitness[:, 0]).all()
        assert (np.diff(result.history, axis=1) >= 0).all()
        np.testing.assert_array_equal(result.history[:, -1], result.fitness[:, 0])
        found = PREDICT_DIGITS(weights_of(0), jnp.asarray(result.genome))
        np.testing.assert_allclose(found, result.fitness[:, 0], rtol=1e-4)
    assert [len(np.unique(networks(genomes), axis=0)) for genomes in result.genomes] == [SHORT.parents] * 3


def test_several_budgets_hold_at_once():
    least = np.asarray([lowest(table) for table in THREE.values()])
    limits = [least * 1.2, least * (1.05, 3.0, 3.0), least * (3.0, 3.0, 1.0)]
    result = evolution.make(DIGITS, THREE, SHORT).evolve(predictor(0), limits, jax.random.key(0))
    check(result, THREE, limits)
    assert np.isfinite(result.fitness[:, 0]).all()


def test_a_budget_out_of_reach_is_named():
    least = lowest(ONE["bit_operations"])
    message = re.escape(f"bit_operations: no genome is within 5, reachable is {least:g} to ") + r"\d"
    with pytest.raises(BudgetError, match=message):
        small_evolution().evolve(predictor(0), [[10 * least], [5.0]], jax.random.key(0))


def test_budgets_out_of_reach_together_are_named():
    """One block, whose two costs are least at opposite ends of one decision."""
    space = tiny()
    terms = [pricing.Term(("stage1_block1.kernel",), np.asarray(values)) for values in ([1.0, 2.0], [2.0, 1.0])]
    tables = {name: pricing.build(space.search_space, [term]) for name, term in zip("ab", terms, strict=True)}
    with pytest.raises(BudgetError, match=r"[ab]: no genome was found within 1\.5 together with the other budgets"):
        within_budgets.cheapest(space, tables, [1.5, 1.5])


def test_limits_are_sets_of_budgets():
    with pytest.raises(ValueError, match=r"limits of shape \(1,\): expected sets of budgets × bit_operations"):
        small_evolution().evolve(predictor(0), [1e9], jax.random.key(0))


def test_fewer_children_than_parents_are_refused():
    with pytest.raises(ValueError, match="10 children: expected at least as many as parents, 25"):
        evolution.make(DIGITS, ONE, Settings(population=10))


def test_the_cheapest_is_the_cheapest():
    space = tiny()
    genomes = everything(space)
    table = space.cost_table(COSTS["bit_operations"])
    costs = [pricing.price_exactly(table, genome) for genome in genomes]
    assert lowest(table, space) == min(costs)
    with pytest.raises(BudgetError, match=re.escape(f"reachable is {min(costs):g} to {max(costs):g}")):
        within_budgets.cheapest(space, {"cost": table}, [0.5 * min(costs)])


def test_sets_of_budgets_are_searched_as_if_alone():
    limits = np.asarray([[1.1], [1.5], [2.5]]) * lowest(ONE["bit_operations"])
    evolve = small_evolution().evolve
    together = evolve(predictor(0), limits, jax.random.key(3))
    for number, row in enumerate(limits):
        alone = evolve(predictor(0), row[None], jax.random.key(3))
        np.testing.assert_array_equal(together.genomes[number], alone.genomes[0])


def test_other_limits_weights_and_keys_compile_nothing():
    limits = np.asarray([[1.1], [1.5], [2.5]]) * lowest(ONE["bit_operations"])
    small_evolution().evolve(predictor(0), limits, jax.random.key(0))
    before = traced
    small_evolution().evolve(predictor(1), 2 * limits, jax.random.key(1))
    assert 0 < before == traced


def test_fitness_that_is_no_number_and_repetitions_are_kept_last():
    start = evolution.Population(
        jnp.zeros((2, 3), jnp.int32), jnp.asarray([1.0, -jnp.inf]), jnp.asarray([[5.0], [jnp.inf]])
    )
    state = evolution.State(jax.random.key(0), jnp.asarray([9.0]), start)
    children = evolution.Children(jnp.asarray([[0, 0, 0], [1, 0, 0], [2, 0, 0]]), jnp.asarray([[5.0], [1.0], [2.0]]))
    parents = small_evolution().tell(state, children, jnp.asarray([1.0, jnp.nan, 0.5])).parents
    np.testing.assert_array_equal(parents.genomes, [[0, 0, 0], [2, 0, 0]])
    np.testing.assert_array_equal(parents.fitness, [1.0, 0.5])
    np.testing.assert_array_equal(parents.costs, [[5.0], [2.0]])


def tiny():
    """Two blocks at most; two options per decision: 2 · 48² genomes."""
    return dataclasses.replace(DIGITS, stages=(Stage(8, 1, 1, 2),), bits=(4, 8), expansion=(2, 3), excluded=(5, 4))


def everything(space):
    """All valid genomes, int32[N, D]."""
    genomes = np.asarray(list(itertools.product(*map(range, space.search_space.option_counts))), np.int32)
    return genomes[np.asarray(space.is_valid(genomes))]


def test_the_optimum_of_a_small_space_is_found():
    space = tiny()
    genomes = everything(space)
    assert len(genomes) == 2 * 48**2
    table = space.cost_table(COSTS["bit_operations"])
    costs = np.asarray([pricing.price_exactly(table, genome) for genome in genomes])
    limit = float(np.quantile(costs, 0.2))
    fitness = functools.partial(predict, space)
    evolve = evolution.make(space, {"cost": table}, Settings(generations=100)).evolve
    hits = 0
    for seed in range(10):
        weights = weights_of(seed, space)
        values = np.asarray(fitness(weights, jnp.asarray(genomes)))[costs <= limit]
        found = evolve(Partial(fitness, weights), [[limit]], jax.random.key(seed)).fitness[0, 0]
        hits += found >= values.max() - 1e-3 * abs(values.max())
    assert hits >= 9


def slow_fronts(objectives):
    """Front by front, pair by pair."""
    numbers, left, number = np.zeros(len(objectives), int), set(range(len(objectives))), 0
    while left:
        bare = {
            i
            for i in left
            if not any((objectives[j] >= objectives[i]).all() and (objectives[j] > objectives[i]).any() for j in left)
        }
        numbers[list(bare)] = number
        left, number = left - bare, number + 1
    return numbers


@pytest.mark.parametrize("costs", [1, 2])
def test_fronts_agree_with_a_slow_derivation(costs):
    rng = np.random.default_rng(costs)
    objectives = rng.integers(0, 6, (40, 1 + costs)).astype(np.float32)  # with ties
    found = selection.fronts(jnp.asarray(objectives[:, 0]), jnp.asarray(-objectives[:, 1:]))
    np.testing.assert_array_equal(found, slow_fronts(objectives))


def slow_crowding(numbers, objectives):
    """Front by front and objective by objective, as in Deb et al., 2002, III-B: crowding-distance-assignment."""
    distance = np.zeros(len(objectives))
    for number in set(numbers):
        members = np.flatnonzero(numbers == number)
        for values in objectives.T:
            order = members[np.argsort(values[members], kind="stable")]
            distance[order[[0, -1]]] = np.inf
            width = values[order[-1]] - values[order[0]]
            for before, at, after in zip(order, order[1:], order[2:], strict=False):
                distance[at] += (values[after] - values[before]) / width if width else 0.0
    return distance


@pytest.mark.parametrize("repeated", [0, 7])
@pytest.mark.parametrize("costs", [1, 2])
def test_crowding_is_that_of_the_paper_with_repeated_genomes_too(costs, repeated):
    """What is repeated has a fitness of −∞ and infinite costs, and changes nothing for the others."""
    rng = np.random.default_rng(costs)
    objectives = rng.uniform(0.9, 0.99, (40, 1 + costs)).astype(np.float32)
    objectives[:, 1:] = -10 * objectives[:, 1:]
    marked = np.concatenate([objectives, np.full((repeated, 1 + costs), -np.inf, np.float32)])
    numbers = np.asarray(selection.fronts(jnp.asarray(marked[:, 0]), jnp.asarray(-marked[:, 1:])))
    found = sum(selection._crowding(jnp.asarray(numbers), jnp.asarray(values)) for values in marked.T)
    expected = slow_crowding(numbers[:40], objectives)
    assert np.isfinite(expected).sum() > 10
    np.testing.assert_allclose(found[:40], expected, rtol=2e-5)
    assert not np.isnan(found).any()


def test_a_fitness_that_is_not_finite_does_not_stretch_its_front():
    values = jnp.asarray([0.90, 0.91, 0.95, 0.96, -jnp.inf], jnp.float32)
    found = selection._crowding(jnp.zeros(5, jnp.int32), values)
    np.testing.assert_allclose(found[1:3], [5 / 6, 5 / 6], rtol=1e-4)


def test_a_search_whose_best_is_not_finite_is_refused():
    limit = 4 * lowest(ONE["bit_operations"])
    evolve = small_evolution().evolve

    def constant(value, genomes):
        return jnp.full(len(genomes), value)

    for value in (jnp.nan, jnp.inf, -jnp.inf):
        with pytest.raises(ValueError, match=r"the best fitness is -?inf: expected"):
            evolve(Partial(constant, jnp.float32(value)), [[limit]], jax.random.key(0))


def test_nsga2_keeps_the_ends_of_a_front_and_drops_the_crowded():
    fitness = jnp.asarray([0.0, 1.0, 1.1, 4.0, 5.0, 3.9, -jnp.inf])
    costs = jnp.asarray([0.0, 1.0, 1.1, 4.0, 5.0, 4.1, jnp.inf])[:, None]
    assert set(np.asarray(selection.nsga2(fitness, costs, 4)).tolist()) == {0, 2, 3, 4}
    assert set(np.asarray(selection.nsga2(fitness, costs, 6)).tolist()) == {0, 1, 2, 3, 4, 5}


def test_nsga2_gives_a_front():
    limit = 4 * lowest(ONE["bit_operations"])
    result = small_evolution(selection.nsga2).evolve(predictor(0), [[limit]], jax.random.key(0))
    check(result, ONE, [[limit]])
    front = slow_fronts(np.column_stack([result.fitness[0], -result.costs[0]]))
    assert (front == 0).all()
    assert np.ptp(result.costs[0]) > 0.3 * limit
    assert (np.diff(result.history) >= 0).all()
