"""The controller of the paper, without a network: its update re-derived in NumPy, and expectations in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fliqs_jax import policy, reinforce
from fliqs_jax.controller import Observation
from fliqs_jax.policy import Policy
from fliqs_jax.reward import REWARDS, absolute
from fliqs_jax.schedule import constant, cosine
from hwcost import expected_pricing, pricing
from hwcost.space import Decision, SearchSpace

SPACE = SearchSpace((Decision("a", ("x", "y", "z")), Decision("b", ("x", "y", "z"))))
TABLE = pricing.build(
    SPACE, [pricing.Term(("a",), np.asarray([4.0, 8.0, 16.0])), pricing.Term(("b",), np.asarray([1.0, 2.0, 4.0]))]
)
TARGET = 9.0
BUDGETS = (pricing.Budget(TABLE, TARGET),)
TOTAL, WARMUP = 12, 4
GENOMES = jnp.asarray(list(np.ndindex(3, 3)), jnp.int32)
QUALITY = jnp.asarray([[0.50, 0.55, 0.60], [0.0, 0.1, 0.12]])


SETTINGS = {
    "reward": absolute,
    "gamma": 0.3,
    "optimizer": optax.adam(0.02, b1=0.95),
    "baseline_momentum": 0.9,
    "entropy_schedule": cosine,
    "entropy_end": 0.5,
    "warmup_steps": WARMUP,
    "total_steps": TOTAL,
}


def controller(**changes):
    return reinforce.make_controller(SPACE, BUDGETS, **(SETTINGS | changes))


def quality_of(genome):
    return QUALITY[0, genome[0]] + QUALITY[1, genome[1]]


def observation(own, state, step, key):
    """What a step would tell, with a quality for each genome."""
    policy = Policy(own.scores(state, step), jnp.asarray(True))
    genomes = jax.vmap(policy.sample)(jax.random.split(jax.random.fold_in(key, 0), own.draws))
    return Observation(
        step=step,
        key=jax.random.fold_in(key, 1),
        genomes=genomes,
        logits=policy.logits,
        qualities=jax.vmap(quality_of)(genomes),
        relative_costs=jax.vmap(lambda genome: pricing.price_relative(BUDGETS, genome))(genomes),
        losses=jnp.zeros((2, 3)),
    )


def run(own, steps, state=None):
    @jax.jit
    def step(state, number):
        seen = observation(own, state, number, jax.random.fold_in(jax.random.key(0), number))
        learned, metrics = own.learn(state, seen)
        return learned, (state, learned, seen, metrics)

    _, history = jax.lax.scan(step, own.init() if state is None else state, jnp.arange(steps))
    return jax.device_get(history)


def test_the_update_follows_the_equations():
    """Advantage against the baseline before the step, REINFORCE plus entropy, Adam: all again in NumPy float64."""
    before, after, seen, metrics = run(controller(), TOTAL)
    mean, m, v, count = None, 0.0, 0.0, 0
    for i in range(TOTAL):
        (genome,) = seen.genomes[i]
        cost = pricing.price_layers(TABLE, genome).sum()
        expected_reward = float(quality_of(genome)) - 0.3 * abs(cost / TARGET - 1)
        assert metrics["reward"][i] == pytest.approx(expected_reward, abs=1e-5)
        mean = expected_reward if mean is None else mean
        advantage = expected_reward - mean
        assert metrics["advantage"][i] == pytest.approx(advantage, abs=1e-5)
        mean = 0.9 * mean + 0.1 * expected_reward
        assert after.reward_mean[i] == pytest.approx(mean, abs=1e-5)
        if i < WARMUP:
            np.testing.assert_array_equal(after.logits[i], before.logits[i])
            assert metrics["entropy_weight"][i] == 0
            continue
        logits = np.asarray(before.logits[i], np.float64)
        p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        one_hot = np.eye(3)[genome]
        entropies = -(p * np.log(p)).sum(axis=1, keepdims=True)
        entropy_gradient = -p * (np.log(p) + entropies)
        weight = 0.25 * (1 - np.cos(np.pi * (i - WARMUP) / (TOTAL - WARMUP)))
        gradient = -advantage * (one_hot - p) + weight * entropy_gradient
        count += 1
        m, v = 0.95 * m + 0.05 * gradient, 0.999 * v + 0.001 * gradient**2
        update = -0.02 * (m / (1 - 0.95**count)) / (np.sqrt(v / (1 - 0.999**count)) + 1e-8)
        np.testing.assert_allclose(after.logits[i], logits + update, atol=2e-4)


def test_warm_up_is_uniform_whatever_was_learnt():
    own = controller()
    state = own.init()._replace(logits=jnp.ones((2, 3)).at[0, 0].set(5.0))
    assert not own.scores(state, jnp.asarray(WARMUP - 1)).any()
    np.testing.assert_array_equal(own.scores(state, jnp.asarray(WARMUP)), state.logits)


def test_a_step_without_advantage_lowers_the_entropy():
    own = controller(reward=lambda q, c, g: 0 * q, entropy_schedule=constant)
    state = own.init()._replace(logits=jax.random.normal(jax.random.key(5), (2, 3)))
    _, after, _, _ = run(own, TOTAL, state)
    entropies = [float(Policy(jnp.asarray(logits), jnp.asarray(True)).entropy()) for logits in after.logits]
    assert entropies[WARMUP - 1] > entropies[WARMUP] > entropies[-1]


def test_it_finds_the_best_genome_when_only_cost_matters(monkeypatch):
    monkeypatch.setitem(globals(), "QUALITY", jnp.zeros((2, 3)))
    own = controller(optimizer=optax.adam(0.05), warmup_steps=20, total_steps=300, cost_samples=16)
    _, after, _, _ = run(own, 300)
    assert list(after.logits[-1].argmax(axis=1)) == [1, 0]  # 8 + 1 is the target


@pytest.mark.parametrize("name", REWARDS)
def test_the_expected_gradient_is_that_of_the_expected_reward(name):
    """Over all genomes of the space, in closed form and by sampling, for each estimator."""
    logits = jnp.asarray([[0.3, -0.2, 0.1], [-0.5, 0.4, 0.0]])
    policy = Policy(logits, jnp.asarray(True))

    def expected_reward(logits):
        changed = policy._replace(logits=logits)
        costs = jax.vmap(lambda genome: pricing.price(TABLE, genome) / TARGET)(GENOMES)
        rewards = REWARDS[name](jax.vmap(quality_of)(GENOMES), costs, 0.3)
        return jnp.sum(jnp.exp(jax.vmap(changed.log_prob)(GENOMES)) * rewards)

    def gradients(trials, **changes):
        own = controller(reward=REWARDS[name], optimizer=optax.sgd(1.0), warmup_steps=0, entropy_end=0.0, **changes)
        state = own.init()._replace(logits=logits, reward_mean=jnp.asarray(0.2), quality_mean=jnp.asarray(0.6))

        def one(key):
            return own.learn(state, observation(own, state, jnp.asarray(3), key))[0].logits - logits

        return jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(9), trials))

    exact = jax.grad(expected_reward)(logits)
    scale = np.abs(exact).max()
    paper = gradients(40000)
    np.testing.assert_allclose(paper.mean(0), exact, atol=0.05 * scale + 0.01)
    for changes in ({"cost_samples": 16}, {"paired": True}, {"paired": True, "cost_samples": 16}):
        found = gradients(20000, **changes)
        np.testing.assert_allclose(found.mean(0), exact, atol=0.05 * scale + 0.006)
        assert found.var(0).sum() < 0.7 * paper.var(0).sum()


# Within the budget.

WITHIN = {"within_budget": True, "warmup_steps": 0, "entropy_end": 0.0, "optimizer": optax.sgd(1.0)}
LOGITS = jnp.asarray([[0.3, -0.2, 0.9], [-0.5, 0.4, 0.2]])


def joint_budgets(*targets):
    """A cost of both decisions together beside each one's own, and one of the second alone."""
    pair = pricing.Term(("a", "b"), np.outer([1.0, 2.0, 3.0], [1.0, 2.0, 4.0]))
    other = pricing.build(SPACE, [pricing.Term(("b",), np.asarray([1.0, 1.0, 3.0]))])
    tables = (pricing.build(SPACE, [pair, pricing.Term(("a",), np.asarray([1.0, 2.0, 4.0]))]), other)
    return tuple(map(pricing.Budget, tables, targets))


@pytest.mark.parametrize(
    ("budgets", "tolerance"),
    [(BUDGETS, 0.02), (joint_budgets(5.0), 0.1), ((*BUDGETS, *joint_budgets(9.0, 1.5)[1:]), 0.02)],
    ids=["sum", "joint", "two"],
)
def test_within_the_budget_the_expected_gradient_is_that_of_the_quality_at_this_cost(budgets, tolerance):
    """By differences of the quality that policies within the budget expect, in each direction of the scores.

    Over a joint cost, marginal costs change with the policy, which the gradient leaves out.
    """
    costs = expected_pricing.relative_costs(SPACE, [budgets]).of_set(0).traced()

    @jax.jit
    def sampled(scores):
        return policy.within_budget(scores, costs)

    def expected_quality(scores):
        return float(jnp.sum(jax.nn.softmax(sampled(scores)) * QUALITY))

    assert all(costs.expected(jax.nn.softmax(LOGITS), budget) > 1 for budget in range(len(budgets)))
    own = reinforce.make_controller(SPACE, budgets, **(SETTINGS | WITHIN))
    assert own.within_budget
    state = own.init()._replace(logits=LOGITS, reward_mean=jnp.asarray(0.6))
    step = 0.05 * np.eye(6, dtype=np.float32).reshape(6, 2, 3)
    exact = np.asarray([expected_quality(LOGITS + each) - expected_quality(LOGITS - each) for each in step]) / 0.1

    def update(genome):
        quality = quality_of(genome)[None]
        seen = Observation(jnp.asarray(3), jax.random.key(0), genome[None], sampled(LOGITS), quality, quality, None)
        return own.learn(state, seen)[0].logits - LOGITS

    probable = jnp.exp(jax.vmap(Policy(sampled(LOGITS), jnp.asarray(True)).log_prob)(GENOMES))
    found = jnp.einsum("g,gdk->dk", probable, jax.jit(jax.vmap(update))(GENOMES)).ravel()
    np.testing.assert_allclose(found, exact, atol=tolerance * np.abs(exact).max() + 1e-4)


def test_within_the_budget_the_reward_is_the_quality_and_what_only_costs_is_no_advantage():
    own = controller(**WITHIN)
    state = own.init()
    logits = policy.within_budget(
        own.scores(state, 0), expected_pricing.relative_costs(SPACE, [BUDGETS]).of_set(0).traced()
    )
    costs = expected_pricing.relative_costs(SPACE, [BUDGETS]).per_option[0, 0]

    def update(quality):
        """The expected update where the quality of a genome is `quality`, float32[9]."""
        state_at = state._replace(reward_mean=jnp.float32(0))

        def one(genome, quality):
            seen = Observation(
                jnp.asarray(1), jax.random.key(0), genome[None], logits, quality[None], quality[None], None
            )
            learned, metrics = own.learn(state_at, seen)
            return learned.logits, metrics["reward"]

        learned, rewards = jax.vmap(one)(GENOMES, quality)
        np.testing.assert_array_equal(rewards, quality)
        return jnp.einsum("g,gdk->dk", jnp.exp(jax.vmap(Policy(logits, jnp.asarray(True)).log_prob)(GENOMES)), learned)

    of_cost = update(jnp.asarray([costs[0, a] + costs[1, b] for a, b in GENOMES], jnp.float32))
    np.testing.assert_allclose(of_cost, 0, atol=1e-5)
    assert np.abs(update(jax.vmap(quality_of)(GENOMES))).max() > 1e-3
