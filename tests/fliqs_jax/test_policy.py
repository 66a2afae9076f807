import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aqt_like.formats import format_space
from fliqs_jax import sampling
from fliqs_jax.controller import Controller
from fliqs_jax.models import elastic
from fliqs_jax.policy import Policy, init_policy, within_budget
from hwcost import expected_pricing, pricing, workload
from hwcost.costs import COSTS
from hwcost.expected_pricing import RelativeCosts
from hwcost.format_plan import format_plan
from hwcost.space import Decision, SearchSpace
from tests.fliqs_jax.models.test_families import FAMILIES

SPACE = SearchSpace((Decision("a", ("x", "y")), Decision("b", ("x", "y", "z"))))


def learned(seed=0):
    policy = init_policy(SPACE, "searched")
    noise = jax.random.normal(jax.random.key(seed), policy.logits.shape)
    return policy._replace(logits=policy.logits + noise)


def slow_probabilities(policy):
    exponentials = np.exp(np.asarray(policy.logits, np.float64))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def test_log_prob_and_entropy_are_sums_over_decisions():
    policy = learned()
    p = slow_probabilities(policy)
    for genome in np.ndindex(2, 3):
        expected = np.log(p[0, genome[0]]) + np.log(p[1, genome[1]])
        np.testing.assert_allclose(policy.log_prob(jnp.asarray(genome)), expected, rtol=1e-5)
    positive = p[p > 0]
    np.testing.assert_allclose(policy.entropy(), -(positive * np.log(positive)).sum(), rtol=1e-5)


def test_samples_follow_the_probabilities_and_never_leave_the_options():
    policy = learned()
    genomes = jax.vmap(policy.sample)(jax.random.split(jax.random.key(0), 20000))
    assert genomes.dtype == jnp.int32
    assert genomes[:, 0].max() == 1
    for d in range(2):
        frequencies = np.bincount(genomes[:, d], minlength=3) / len(genomes)
        np.testing.assert_allclose(frequencies, slow_probabilities(policy)[d], atol=0.015)


def test_gradients_are_finite_with_missing_options():
    for policy in (learned(), init_policy(SPACE, "fixed", [1, 2])):
        for function in (Policy.entropy, lambda p: p.log_prob(jnp.asarray([1, 2]))):
            gradient = jax.grad(lambda logits, p=policy, f=function: f(p._replace(logits=logits)))(policy.logits)
            assert np.isfinite(gradient).all()


def test_log_prob_gradient_is_one_hot_minus_probability():
    policy = learned()
    gradient = jax.grad(lambda logits: policy._replace(logits=logits).log_prob(jnp.asarray([1, 0])))(policy.logits)
    one_hot = np.asarray([[0, 1, 0], [1, 0, 0]])
    np.testing.assert_allclose(gradient, one_hot - slow_probabilities(policy), atol=1e-6)


def test_the_three_kinds():
    fixed = init_policy(SPACE, "fixed", [1, 2])
    assert list(fixed.mode()) == [1, 2]
    assert list(fixed.sample(jax.random.key(3))) == [1, 2]
    assert fixed.entropy() == 0
    flat = init_policy(SPACE, "uniform")
    np.testing.assert_allclose(flat.entropy(), np.log(2) + np.log(3), rtol=1e-6)
    assert [bool(init_policy(SPACE, kind).learns) for kind in ("searched", "uniform")] == [True, False]
    assert not fixed.learns
    np.testing.assert_array_equal(learned().uniform().logits, flat.logits)


@pytest.mark.parametrize(
    ("kind", "genome", "message"),
    [
        ("greedy", None, "unknown policy 'greedy': expected one of searched, uniform, fixed"),
        ("fixed", None, "'fixed' needs a genome"),
        ("uniform", [0, 0], "'uniform' takes no genome"),
        ("fixed", [0], "genome of length 1"),
        ("fixed", [0, 3], "option 3"),
    ],
)
def test_policies_that_make_no_sense_are_refused(kind, genome, message):
    with pytest.raises(ValueError, match=message):
        init_policy(SPACE, kind, genome)


# Within the budget.


def sums(costs):
    """Costs of options over targets, float[M, D, Kmax], as `within_budget` takes them."""
    return RelativeCosts(jnp.asarray(costs, jnp.float32), (None,) * len(costs), jnp.ones(len(costs)))


def expected_costs(logits, costs):
    p = np.exp(np.asarray(logits, np.float64) - np.max(logits, axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    return (p * costs).sum(axis=(1, 2))


def setting(seed, budgets, scale):
    """Scores of 12 decisions, one of them pinned and some with missing options, and costs that rise with options."""
    rng = np.random.default_rng(seed)
    exists = np.arange(5) < rng.integers(2, 6, 12)[:, None]
    exists[0] = np.arange(5) == 0
    scores = np.where(exists, scale * rng.standard_normal((12, 5)), -np.inf)
    costs = np.where(exists, np.cumsum(rng.exponential(size=(budgets, 12, 5)), axis=2), 0.0)
    cheapest = np.where(exists, costs, np.inf).min(axis=2).sum(axis=1)
    return jnp.asarray(scores, jnp.float32), costs / (1.5 * cheapest)[:, None, None], exists


@pytest.mark.parametrize(
    ("budgets", "scale"), [(1, 0.0), (1, 0.1), (1, 3.0), (1, 1000.0), (2, 0.1), (2, 3.0), (3, 0.1), (3, 3.0)]
)
def test_expected_costs_are_the_targets_where_scores_want_more(budgets, scale):
    solve = jax.jit(within_budget)
    for seed in range(5):
        scores, costs, exists = setting(seed, budgets, scale)
        logits = np.asarray(solve(scores, sums(costs)))
        found = expected_costs(logits, costs)
        assert (found < 1 + 2e-3).all()
        assert (np.isfinite(logits) == exists).all()
        # A budget with room has no multiplier: the logits are the scores, less multiples of the costs that are full.
        full = found > 0.998
        if not full.any():
            np.testing.assert_array_equal(logits, scores)
            continue
        taken, columns = np.asarray(scores)[exists] - logits[exists], costs[full][:, exists].T
        multipliers, *_ = np.linalg.lstsq(columns, taken, rcond=None)
        np.testing.assert_allclose(columns @ multipliers, taken, atol=1e-3 * max(np.abs(taken).max(), 1))
        assert (multipliers > -1e-3 * np.abs(multipliers).max()).all()


@pytest.mark.parametrize("budgets", [2, 3])
def test_very_sharp_scores_keep_several_budgets(budgets):
    for seed in range(5):
        scores, costs, _ = setting(seed, budgets, 1000.0)
        found = expected_costs(within_budget(scores, sums(costs)), costs)
        assert (found < 1 + 1e-4).all()
        assert found.max() > 0.998 or (expected_costs(scores, costs) <= 1).all()


def test_scores_that_cost_less_than_the_target_are_left_alone():
    scores, costs, _ = setting(0, 2, 3.0)
    np.testing.assert_array_equal(within_budget(scores, sums(costs / 100)), scores)


def test_sharp_scores_give_the_lagrangian_knapsack_but_for_one_toss():
    scores, costs, _ = setting(3, 1, 1e5)
    p = np.asarray(jax.nn.softmax(within_budget(scores, sums(costs))))
    assert ((p > 0.01) & (p < 0.99)).any(axis=1).sum() <= 1


# Over architectures, where a layer's cost depends on several decisions.


@functools.cache
def plan_over(name):
    family, shape = FAMILIES[name]
    layers = workload.trace(family.largest, shape, train=False)
    return format_plan(layers, format_space("int_s"), (), elastic.architecture(family, layers))


def budget(plan, name, share):
    """A target between the cheapest genome (a share of 0) and the dearest (1), in powers of their ratio."""
    table = COSTS[name].table(plan)
    lowest, highest = (
        pricing.price_exactly(table, genome) for genome in (0 * plan.space.option_counts, plan.space.option_counts - 1)
    )
    return pricing.Budget(table, lowest * (highest / lowest) ** share)


def exact_probabilities(logits):
    p = np.exp(np.asarray(logits, np.float64) - np.max(logits, axis=-1, keepdims=True))
    return p / p.sum(axis=-1, keepdims=True)


def sampled_cost(plan, table, p):
    """The expected cost of a product policy in NumPy: of each term, over the options that it depends on."""
    total = 0.0
    for offset, decision, stride in zip(table.offset, table.decision, table.stride, strict=True):
        used = decision[stride > 0]
        for options in np.ndindex(*plan.space.option_counts[used]):
            value = table.flat[offset + np.dot(stride[stride > 0], options)]
            total += value * np.prod(p[used, list(options)])
    return total


@pytest.mark.parametrize(
    ("name", "costs_of"),
    [
        ("mobilenetv2", ("bit_operations",)),
        ("mobilenetv2", ("bitfusion_latency",)),
        ("recommender", ("bit_operations", "weight_bytes")),
    ],
)
def test_over_architectures_expected_costs_are_the_targets_too(name, costs_of):
    """For two sets of targets at once, for scores that leave much to chance, and for some that leave nothing."""
    plan = plan_over(name)
    sets = [[budget(plan, cost, share) for cost in costs_of] for share in (0.05, 0.15)]
    costs = expected_pricing.relative_costs(plan.space, sets)
    assert costs.is_joint
    rng = np.random.default_rng(0)
    both_flat = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), init_policy(plan.space, "searched"))
    given = Controller(
        init=lambda: None, scores=lambda scores, _: scores, learn=lambda s, _: (s, {}), within_budget=True
    )
    solve = jax.jit(lambda scores: sampling.next_policies(given, costs, both_flat, scores, jnp.asarray(0)).logits)
    for scale in (1.0, 1000.0):
        wanted = scale * np.sort(rng.standard_normal(plan.space.exists.shape), axis=1)
        scores = jnp.asarray(wanted, jnp.float32)
        for number, logits in enumerate(solve(scores)):
            p = exact_probabilities(logits)
            found = np.asarray([sampled_cost(plan, table, p) / target for table, target in sets[number]])
            assert found.max() == pytest.approx(1, abs=2e-3)
            # What is taken off the scores are marginal costs, of budgets that are full alone.
            slopes = np.asarray(costs.of_set(number).traced().marginals(jnp.asarray(p, jnp.float32)))
            exists = plan.space.exists
            taken, columns = np.where(exists, scores - logits, 0.0), slopes[found > 0.998]
            if scale < 1000:
                taken, *columns = (each - each.mean(axis=1, where=exists, keepdims=True) for each in (taken, *columns))
                columns = np.stack([column[exists] for column in columns], axis=1)
                multipliers, *_ = np.linalg.lstsq(columns, taken[exists], rcond=None)
                np.testing.assert_allclose(columns @ multipliers, taken[exists], atol=0.02 * np.abs(taken).max())
                assert (multipliers > 0).all()


def test_over_architectures_a_budget_with_room_changes_nothing():
    plan = plan_over("mobilenetv2")
    scores = jnp.where(plan.space.exists, 1.0, -jnp.inf)
    costs = expected_pricing.relative_costs(plan.space, [[budget(plan, "bit_operations", 1.0)]]).of_set(0).traced()
    np.testing.assert_array_equal(within_budget(scores, costs), scores)
