"""The search step on a tiny network: what each phase may change, and the controller's update re-derived in NumPy."""

import dataclasses

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from aqt_like import calibration, format_choice, gradients, interception
from aqt_like.formats import format_space
from fliqs_jax import layer_sensitivity, losses, random_search
from fliqs_jax.policy import init_policy
from fliqs_jax.quality import Quality, accuracy
from fliqs_jax.reward import REWARDS, absolute
from fliqs_jax.schedule import constant, cosine
from fliqs_jax.search import (
    Search,
    _reinforcement,
    init_state,
    make_evaluate,
    make_profile_clip_multiples,
    make_recalibrate,
    make_search_step,
    quantized_variables,
)
from hwcost import analytic, pricing, workload
from hwcost.format_plan import format_plan

TOTAL, WARMUP, QUANTIZE_INPUTS, PROFILE = 12, 4, 2, 3
FORMATS = format_space("int_s")


class Tiny(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Conv(4, (3, 3), (2, 2), name="conv")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm")(x))
        return nn.Dense(3, name="head")(x.mean((1, 2)))


LAYERS = workload.trace(Tiny(), (6, 6, 1), train=False)
PLAN = format_plan(LAYERS, FORMATS)
SPACE = PLAN.space
TABLE = analytic.BIT_OPERATIONS.table(PLAN)
TARGET = 1.5 * analytic.BIT_OPERATIONS.uniform(LAYERS, FORMATS[0])
SEARCH = Search(
    model=Tiny(),
    paths=("conv", "head"),
    choice=PLAN.choice,
    bank=format_choice.format_bank(FORMATS, use_unsigned=True),
    budgets=(pricing.Budget(TABLE, TARGET),),
    optimizer=optax.sgd(0.05, momentum=0.9),
    policy_optimizer=optax.adam(0.02, b1=0.95),
    loss=losses.cross_entropy(0.1),
    quality=accuracy,
    reward=absolute,
    gamma=0.3,
    entropy_schedule=cosine,
    entropy_end=0.5,
    baseline_momentum=0.9,
    cost_samples=0,
    total_steps=TOTAL,
    warmup_steps=WARMUP,
    input_quantization_step=QUANTIZE_INPUTS,
    profile_steps=PROFILE,
)
MULTIPLES = format_choice.precomputed_clip_multiples(FORMATS, 2, "gaussian", use_unsigned=True)


def batch(seed, size=16):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, size).astype(np.int32)
    images = rng.standard_normal((size, 6, 6, 1)).astype(np.float32) + labels[:, None, None, None]
    return {"input": jnp.asarray(images), "label": jnp.asarray(labels)}


def start(kind="reinforce", genome=None, search=SEARCH):
    policy = init_policy(SPACE, kind, genome)
    return init_state(search, policy, MULTIPLES, jax.random.key(0), batch(0)["input"])


def run(state, steps=TOTAL, search=SEARCH, step=None):
    step = step or jax.jit(make_search_step(search))
    history = []
    for i in range(steps):
        before = state
        state, metrics = step(state, batch(2 * i), batch(2 * i + 1))
        history.append((before, state, jax.device_get(metrics)))
    return state, history


@pytest.fixture(scope="module")
def searched():
    return run(start())


def test_one_compilation_serves_all_phases_and_all_policies():
    step = jax.jit(chex.assert_max_traces(make_search_step(SEARCH), n=1))
    for kind, genome in (("reinforce", None), ("uniform", None), ("fixed", [0, 2]), ("fixed", [2, 1])):
        state, _ = run(start(kind, genome), step=step)
        assert int(state.step) == TOTAL


def test_another_gradient_can_be_passed_in():
    search = dataclasses.replace(SEARCH, quantizer=interception.Quantizer(gradients.ewgs(0.1)))
    state, _ = run(start(), search=search)
    plain, _ = run(start())
    with pytest.raises(AssertionError):
        chex.assert_trees_all_close(state.params, plain.params)


def test_search_step_equals_itself_under_scan():
    step = make_search_step(SEARCH)
    batches = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[(batch(2 * i), batch(2 * i + 1)) for i in range(TOTAL)])
    scanned, _ = jax.jit(lambda state: jax.lax.scan(lambda s, b: step(s, *b), state, batches))(start())
    looped, _ = run(start())
    key = jax.random.key_data
    chex.assert_trees_all_close(
        scanned._replace(key=key(scanned.key)), looped._replace(key=key(looped.key)), rtol=1e-4, atol=1e-5
    )


def test_warm_up_draws_uniformly_and_leaves_the_policy_alone(searched):
    _, history = searched
    for i, (before, after, metrics) in enumerate(history):
        changed = not np.array_equal(before.policy.logits, after.policy.logits)
        assert changed == (i >= WARMUP)
        if i < WARMUP:
            assert metrics["entropy"] == pytest.approx(2 * np.log(3))
            assert metrics["entropy_weight"] == 0


def test_weights_train_at_every_step(searched):
    for before, after, metrics in searched[1]:
        assert not np.array_equal(before.params["conv"]["kernel"], after.params["conv"]["kernel"])
        assert np.isfinite(metrics["loss"])


def test_inputs_are_profiled_first_and_then_left_alone(searched):
    for i, (before, after, _) in enumerate(searched[1]):
        profile = after.calibration["conv"]["input"]
        assert int(profile.batches) == min(i + 1, PROFILE)
        if i >= PROFILE:
            chex.assert_trees_all_equal(before.calibration, after.calibration)


def test_inputs_are_quantised_from_their_step_on():
    """An input format so coarse that it silences the network shows from when on it is used."""
    silent = MULTIPLES._replace(inputs=MULTIPLES.inputs * 1e6, unsigned_inputs=MULTIPLES.unsigned_inputs * 1e6)
    policy = init_policy(SPACE, "fixed", [0, 0])
    state = init_state(SEARCH, policy, silent, jax.random.key(0), batch(0)["input"])
    _, history = run(state, steps=QUANTIZE_INPUTS + 1)
    moved = [not np.array_equal(b.params["conv"]["kernel"], a.params["conv"]["kernel"]) for b, a, _ in history]
    # With momentum the kernel keeps moving; its gradient shows in the trace of SGD.
    traces = [jax.tree.leaves(a.opt_state)[1] - 0.9 * jax.tree.leaves(b.opt_state)[1] for b, a, _ in history]
    assert all(moved)
    assert np.abs(traces[QUANTIZE_INPUTS - 1]).max() > 0
    np.testing.assert_allclose(traces[QUANTIZE_INPUTS], 0, atol=1e-7)


def test_controller_update_follows_the_equations(searched):
    """Advantage against the baseline before the step, REINFORCE plus entropy, Adam: all again in NumPy float64."""
    _, history = searched
    mean, m, v, count = None, 0.0, 0.0, 0
    for i, (before, after, metrics) in enumerate(history):
        cost = pricing.price_layers(TABLE, metrics["genome"]).sum()
        expected_reward = metrics["valid_quality"] - 0.3 * abs(cost / TARGET - 1)
        assert metrics["reward"] == pytest.approx(expected_reward, abs=1e-5)
        mean = expected_reward if mean is None else mean
        advantage = expected_reward - mean
        assert metrics["advantage"] == pytest.approx(advantage, abs=1e-5)
        mean = 0.9 * mean + 0.1 * expected_reward
        assert float(after.reward_mean) == pytest.approx(mean, abs=1e-5)
        if i < WARMUP:
            continue
        logits = np.asarray(before.policy.logits, np.float64)
        p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        one_hot = np.eye(3)[metrics["genome"]]
        entropies = -(p * np.log(p)).sum(axis=1, keepdims=True)
        entropy_gradient = -p * (np.log(p) + entropies)
        weight = 0.25 * (1 - np.cos(np.pi * (i - WARMUP) / (TOTAL - WARMUP)))
        gradient = -advantage * (one_hot - p) + weight * entropy_gradient
        count += 1
        m, v = 0.95 * m + 0.05 * gradient, 0.999 * v + 0.001 * gradient**2
        update = -0.02 * (m / (1 - 0.95**count)) / (np.sqrt(v / (1 - 0.999**count)) + 1e-8)
        np.testing.assert_allclose(after.policy.logits, logits + update, atol=2e-4)


def test_a_step_without_advantage_lowers_the_entropy():
    search = dataclasses.replace(SEARCH, reward=lambda q, c, g: 0 * q, entropy_schedule=constant)
    state = start(search=search)
    state = state._replace(policy=state.policy._replace(logits=jax.random.normal(jax.random.key(5), (2, 3))))
    _, history = run(state, search=search)
    entropies = [float(after.policy.entropy()) for _, after, _ in history]
    assert entropies[WARMUP - 1] > entropies[WARMUP] > entropies[-1]


def test_the_controller_finds_the_best_genome_when_only_cost_matters():
    target = analytic.bit_operations(LAYERS[0], FORMATS[1]) + analytic.bit_operations(LAYERS[1], FORMATS[0])
    search = dataclasses.replace(
        SEARCH,
        total_steps=300,
        warmup_steps=20,
        quality=Quality("none", lambda logits, batch: jnp.zeros(()), lambda statistics: statistics),
        policy_optimizer=optax.adam(0.05, b1=0.95),
        budgets=(pricing.Budget(TABLE, target),),
    )
    step = make_search_step(search)
    fixed = (batch(0, 4), batch(1, 4))
    state, _ = jax.jit(lambda s: jax.lax.scan(lambda s, _: step(s, *fixed), s, None, length=300))(start(search=search))
    genome = np.asarray(state.policy.mode())
    assert genome[0] == 1  # the layer that makes up nearly all of the cost
    assert pricing.price_layers(TABLE, genome).sum() == pytest.approx(target, rel=0.05)


def test_the_tightest_of_several_budgets_is_what_the_reward_sees():
    weights = analytic.WEIGHT_BYTES.table(PLAN)
    search = dataclasses.replace(SEARCH, budgets=(*SEARCH.budgets, pricing.Budget(weights, 5.0)))
    _, history = run(start("fixed", [2, 2], search=search), search=search)
    metrics = history[0][2]
    bits, kernel_entries = pricing.price_exactly(TABLE, np.asarray([2, 2])), sum(layer.weights for layer in LAYERS)
    assert metrics["cost"] == pytest.approx(bits)
    assert metrics["relative_cost"] == pytest.approx(max(bits / TARGET, 2 * kernel_entries / 5.0))
    assert 2 * kernel_entries / 5.0 > bits / TARGET  # bf16 weights are the tighter budget here


@pytest.mark.parametrize("name", REWARDS)
def test_cost_samples_leave_the_expected_gradient_and_shrink_its_noise(name):
    """Over all genomes of the space, in closed form and by sampling."""
    logits = jnp.asarray([[0.3, -0.2, 0.1], [-0.5, 0.4, 0.0]])
    test_quality = jnp.asarray([[0.50, 0.55, 0.60], [0.0, 0.1, 0.12]])
    policy = init_policy(SPACE, "reinforce")._replace(logits=logits)
    genomes = jnp.asarray(list(np.ndindex(3, 3)), jnp.int32)
    state = start()._replace(policy=policy, reward_mean=jnp.asarray(0.2), quality_mean=jnp.asarray(0.6))

    def reward_of(genome):
        quality = test_quality[0, genome[0]] + test_quality[1, genome[1]]
        return REWARDS[name](quality, pricing.price(TABLE, genome) / TARGET, 0.3)

    def expected_reward(logits):
        changed = policy._replace(logits=logits)
        return sum(jnp.exp(changed.log_prob(g)) * reward_of(g) for g in genomes)

    def gradients(cost_samples, trials):
        search = dataclasses.replace(SEARCH, cost_samples=cost_samples, reward=REWARDS[name])

        def one(key):
            own_state = state._replace(key=key)
            genome = policy.sample(jax.random.fold_in(key, 123))
            relative_cost = pricing.price(TABLE, genome) / TARGET
            chosen, advantages = _reinforcement(search, own_state, policy, genome, relative_cost, reward_of(genome))
            return jax.grad(
                lambda logits: jnp.sum(
                    advantages * jax.vmap(lambda g: policy._replace(logits=logits).log_prob(g))(chosen)
                )
            )(logits)

        return jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(9), trials))

    exact = jax.grad(expected_reward)(logits)
    paper, sampled = gradients(0, 40000), gradients(16, 10000)
    scale = np.abs(exact).max()
    np.testing.assert_allclose(paper.mean(0), exact, atol=0.05 * scale + 0.01)
    np.testing.assert_allclose(sampled.mean(0), exact, atol=0.05 * scale + 0.005)
    assert sampled.var(0).sum() < 0.5 * paper.var(0).sum()


def test_cost_samples_run_in_the_same_step():
    search = dataclasses.replace(SEARCH, cost_samples=8)
    state, history = run(start(search=search), search=search)
    assert all(np.isfinite(metrics["advantage"]) for _, _, metrics in history)
    assert not np.array_equal(state.policy.logits, run(start())[0].policy.logits)


def test_fixed_policies_never_change():
    state, history = run(start("fixed", [1, 2]))
    np.testing.assert_array_equal(state.policy.logits, start("fixed", [1, 2]).policy.logits)
    assert all(list(metrics["genome"]) == [1, 2] for _, _, metrics in history)


def test_recalibration_averages_over_batches_and_changes_only_batch_statistics(searched):
    """The mean and variance of what the quantised convolution computes, in NumPy."""
    state, genome, batches = searched[0], jnp.asarray([0, 0]), [batch(50), batch(51)]
    recalibrate = make_recalibrate(SEARCH)
    variables = quantized_variables(SEARCH, state, genome, True)
    recalibrated = recalibrate(recalibrate(variables, batches[:1]), batches)
    captured = jax.jit(
        lambda state: interception.apply_quantized(
            SEARCH.model,
            quantized_variables(SEARCH, state, genome, True),
            jnp.concatenate([b["input"] for b in batches]),
            train=False,
            capture_intermediates=lambda module, _: module.name == "conv",
            mutable=["intermediates"],
        )[1]["intermediates"]["conv"]["__call__"][0]
    )
    outputs = np.asarray(captured(state), np.float64).reshape(2, -1, 4)
    expected = {"mean": outputs.mean(axis=1).mean(axis=0), "var": outputs.var(axis=1).mean(axis=0)}
    chex.assert_trees_all_close(recalibrated["batch_stats"]["norm"], expected, rtol=1e-5, atol=1e-6)
    rest = {**recalibrated, "batch_stats": variables["batch_stats"]}
    assert all(new is old for new, old in zip(jax.tree.leaves(rest), jax.tree.leaves(variables), strict=True))


def test_evaluation_ignores_padding(searched):
    evaluate = jax.jit(make_evaluate(SEARCH))
    full = batch(60)
    half = {"input": full["input"], "label": full["label"].at[8:].set(-1)}
    variables = quantized_variables(SEARCH, searched[0], jnp.asarray([2, 2]), True)
    (whole, all_of_it), (part, half_of_it) = (evaluate(variables, b) for b in (full, half))
    assert 0 < part < whole <= 16
    assert part <= 8
    assert (all_of_it, half_of_it) == (16, 8)


def test_profiled_clip_multiples_replace_the_precomputed_ones(searched):
    profiled = jax.jit(make_profile_clip_multiples(SEARCH, calibration.best_multiples))(searched[0], batch(0))
    assert profiled.clip_multiples.weights.shape == (2, 3)
    assert not np.array_equal(profiled.clip_multiples.inputs, searched[0].clip_multiples.inputs)


def test_random_search_takes_the_best_of_the_nearest():
    calls = []

    def quality(genome):
        calls.append(tuple(int(g) for g in genome))
        return float(genome[1] == 1)

    found = random_search.best_of_random(SEARCH, start("uniform"), quality, jax.random.key(0), draws=500, evaluated=4)
    misses = {g: abs(pricing.price_layers(TABLE, np.asarray(g)).sum() / TARGET - 1) for g in np.ndindex(3, 3)}
    assert set(calls) == set(sorted(misses, key=misses.get)[:4])
    assert tuple(int(g) for g in found) == max(calls, key=lambda g: (g[1] == 1) - 0.3 * misses[g])


def test_sensitivity_is_that_of_one_layer_at_a_time():
    state, _ = run(start("fixed", [2, 2]))
    measured = layer_sensitivity.measure_over(SEARCH, state, [batch(100), batch(101)])
    assert measured.noise_to_signal.shape == measured.quality_drop.shape == (2, 3)
    # More bits, less noise; bf16 changes hardly anything.
    assert (np.diff(measured.noise_to_signal, axis=1) < 0).all()
    assert (measured.signal_to_noise_db[:, 2] > 35).all()

    # By hand: the second layer in int4, the first in float.
    def logits(variables, x):
        return interception.apply_quantized(SEARCH.model, variables, x, train=False)

    variables = quantized_variables(SEARCH, state, jnp.asarray([0, 0]), True)
    only_head = {**variables, "formats": {"head": variables["formats"]["head"]}}
    floats = {**variables, "formats": {}}
    noise = signal = 0.0
    correct = []
    for b in (batch(100), batch(101)):
        reference, changed = logits(floats, b["input"]), logits(only_head, b["input"])
        noise += np.sum((changed - reference) ** 2)
        signal += np.sum((reference - reference.mean(-1, keepdims=True)) ** 2)
        correct.append([np.mean(np.argmax(y, -1) == b["label"]) for y in (reference, changed)])
    np.testing.assert_allclose(measured.noise_to_signal[1, 0], noise / signal, rtol=1e-4)
    reference, changed = np.mean(correct, axis=0)
    np.testing.assert_allclose([measured.quality, measured.quality_drop[1, 0]], [reference, reference - changed])
    with pytest.raises(ValueError, match="no batches"):
        layer_sensitivity.measure_over(SEARCH, state, [])
