import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fliqs_jax.policy import Policy, init_policy
from hwcost.space import Decision, SearchSpace

SPACE = SearchSpace((Decision("a", ("x", "y")), Decision("b", ("x", "y", "z"))))


def learned(seed=0):
    policy = init_policy(SPACE, "reinforce")
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
    assert [bool(init_policy(SPACE, kind).learns) for kind in ("reinforce", "uniform")] == [True, False]
    assert not fixed.learns
    np.testing.assert_array_equal(learned().uniform().logits, flat.logits)


@pytest.mark.parametrize(
    ("kind", "genome", "message"),
    [
        ("greedy", None, "unknown policy 'greedy': expected one of reinforce, uniform, fixed"),
        ("fixed", None, "'fixed' needs a genome"),
        ("uniform", [0, 0], "'uniform' takes no genome"),
        ("fixed", [0], "genome of length 1"),
        ("fixed", [0, 3], "option 3"),
    ],
)
def test_policies_that_make_no_sense_are_refused(kind, genome, message):
    with pytest.raises(ValueError, match=message):
        init_policy(SPACE, kind, genome)
