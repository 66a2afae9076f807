import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hwcost import pricing
from hwcost.space import Decision, SearchSpace

SPACE = SearchSpace(
    (
        Decision("a", ("0", "1")),
        Decision("b", ("0", "1", "2")),
        Decision("c", ("0", "1")),
        Decision("unused", ("0", "1")),
    )
)
RNG = np.random.default_rng(0)
TERMS = [
    pricing.Term(("b",), RNG.random(3)),
    pricing.Term(("a", "b", "c"), RNG.random((2, 3, 2))),
    pricing.Term(("c", "a"), RNG.random((2, 2))),
    pricing.Term((), np.asarray(0.25)),
    pricing.Term(("b",), RNG.random(3)),
]
GENOMES = np.asarray(list(itertools.product(*(range(n) for n in SPACE.option_counts))), np.int32)


def slow_price(genome, terms=TERMS):
    """The same sum, one dictionary look-up at a time."""
    choice = dict(zip((d.name for d in SPACE.decisions), genome, strict=True))
    return sum(float(term.values[tuple(choice[name] for name in term.decisions)]) for term in terms)


def test_prices_equal_the_slow_sum_under_jit_vmap_and_scan():
    table = pricing.build(SPACE, TERMS)
    expected = [slow_price(g) for g in GENOMES]
    np.testing.assert_allclose(jax.vmap(lambda g: pricing.price(table, g))(GENOMES), expected, rtol=1e-6)
    price = jax.jit(chex.assert_max_traces(lambda g: pricing.price(table, g), n=1))
    np.testing.assert_allclose([price(g) for g in GENOMES], expected, rtol=1e-6)
    _, scanned = jax.lax.scan(lambda _, g: (None, pricing.price(table, g)), None, jnp.asarray(GENOMES))
    np.testing.assert_allclose(scanned, expected, rtol=1e-6)


def test_host_prices_are_exact_per_term():
    table = pricing.build(SPACE, TERMS)
    for genome in GENOMES:
        costs = pricing.price_layers(table, genome)
        assert costs.dtype == np.float64
        assert costs.sum() == pytest.approx(slow_price(genome), rel=1e-15)
        assert costs[3] == 0.25


def test_reachable_interval_is_exact_for_separable_costs_and_a_bound_otherwise():
    separable = [TERMS[0], TERMS[3], TERMS[4], pricing.Term(("a",), np.asarray([3.0, -1.0]))]
    costs = [slow_price(g, separable) for g in GENOMES]
    interval = pricing.reachable_interval(pricing.build(SPACE, separable), SPACE)
    np.testing.assert_allclose(interval, (min(costs), max(costs)))
    low, high = pricing.reachable_interval(pricing.build(SPACE, TERMS), SPACE)
    costs = [slow_price(g) for g in GENOMES]
    assert low <= min(costs) <= max(costs) <= high


@pytest.mark.parametrize(
    ("term", "message"),
    [
        (pricing.Term(("b",), np.zeros(2)), r"shape \(2,\), expected \(3,\)"),
        (pricing.Term(("b", "a"), np.zeros((2, 3))), r"expected \(3, 2\)"),
        (pricing.Term(("a",), np.asarray([1.0, np.nan])), "not finite"),
        (pricing.Term(("z",), np.zeros(2)), "no decision 'z'"),
    ],
)
def test_terms_that_do_not_fit_are_refused(term, message):
    with pytest.raises(ValueError, match=message):
        pricing.build(SPACE, [term])
