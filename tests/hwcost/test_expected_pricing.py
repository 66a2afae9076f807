"""Expected costs against sums over all genomes, in NumPy."""

import itertools

import jax
import numpy as np
import pytest

from hwcost import expected_pricing, pricing
from hwcost.pricing import Budget, Term
from hwcost.space import Decision, SearchSpace

COUNTS = (3, 2, 1, 4)
SPACE = SearchSpace(tuple(Decision(f"d{i}", tuple("wxyz"[:count])) for i, count in enumerate(COUNTS)))
GENOMES = np.asarray(list(itertools.product(*map(range, COUNTS))))


def table(seed, *decisions):
    rng = np.random.default_rng(seed)
    terms = [Term(tuple(f"d{i}" for i in each), rng.exponential(size=[COUNTS[i] for i in each])) for each in decisions]
    return pricing.build(SPACE, terms)


JOINT = table(0, (0,), (3, 1), (0, 2), (1, 2, 0), (2,), (3, 0, 1), (3, 0))
PLAIN = table(1, (0,), (2, 1), (3,), (2,), (0,))


def random_probabilities(seed):
    weights = np.where(SPACE.exists, np.random.default_rng(seed).exponential(size=SPACE.exists.shape), 0.0)
    return weights / weights.sum(axis=1, keepdims=True)


def slow_expectation(cost_table, p):
    probable = np.prod(p[np.arange(len(COUNTS)), GENOMES], axis=1)
    return probable @ [pricing.price_exactly(cost_table, genome) for genome in GENOMES]


def test_expected_costs_and_marginals_are_those_over_all_genomes():
    targets = ((20.0, 3.0), (5.0, 4.0))
    costs = expected_pricing.relative_costs(SPACE, [(Budget(JOINT, a), Budget(PLAIN, b)) for a, b in targets])
    assert costs.is_joint
    assert [terms is None for terms in costs.joint] == [False, True]
    p = random_probabilities(2)
    for number, of_set in enumerate(targets):
        traced = costs.of_set(number).traced()
        marginals = np.asarray(jax.jit(traced.marginals)(p))
        for budget, (cost_table, target) in enumerate(zip((JOINT, PLAIN), of_set, strict=True)):
            expected = slow_expectation(cost_table, p) / target
            np.testing.assert_allclose(jax.jit(traced.expected, static_argnums=1)(p, budget), expected, rtol=1e-5)
            for decision, count in enumerate(COUNTS):
                given = np.repeat(p[None], count, axis=0)
                given[:, decision] = np.eye(p.shape[1])[:count]
                each = np.asarray([slow_expectation(cost_table, q) for q in given]) / target
                brings = marginals[budget, decision, :count]
                np.testing.assert_allclose(brings - brings[0], each - each[0], atol=1e-5)


def test_a_sum_over_decisions_has_the_costs_of_its_options():
    found = expected_pricing.separated(SPACE, PLAIN)
    assert found.joint is None
    priced = found.per_option[np.arange(len(COUNTS)), GENOMES].sum(axis=1)
    np.testing.assert_allclose(priced, pricing.price_layers(PLAIN, GENOMES).sum(axis=1))
    assert not found.per_option[~SPACE.exists].any()


def test_a_peak_is_refused():
    with pytest.raises(ValueError, match="the dearest layer alone makes the cost"):
        expected_pricing.separated(SPACE, JOINT._replace(peak=True))
