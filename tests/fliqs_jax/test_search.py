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
from fliqs_jax import assignment, fisher, layer_sensitivity, losses, random_search, reinforce
from fliqs_jax.evaluation import make_evaluate, make_profile_clip_multiples, make_recalibrate
from fliqs_jax.models.call_finding import called
from fliqs_jax.policy import init_policy
from fliqs_jax.quality import accuracy
from fliqs_jax.reward import absolute
from fliqs_jax.search import Search, freeze_genomes, init_state, make_search_step, quantized_variables, settled_genomes
from hwcost import analytic, pricing, workload
from hwcost.format_plan import format_plan
from tests.fliqs_jax.test_reinforce import SETTINGS, TOTAL, WARMUP

QUANTIZE_INPUTS, PROFILE = 2, 3
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
BUDGETS = (pricing.Budget(TABLE, TARGET),)


def reinforced(budgets=BUDGETS):
    """The controller of the paper."""
    return reinforce.make_controller(SPACE, budgets, **SETTINGS)


SEARCH = Search(
    model=called(Tiny()),
    plan=PLAN,
    bank=format_choice.format_bank(FORMATS, use_unsigned=True),
    budgets=BUDGETS,
    optimizer=optax.sgd(0.05, momentum=0.9),
    loss=losses.cross_entropy(0.1),
    quality=accuracy,
    controller=reinforced(),
    total_steps=TOTAL,
    input_quantization_step=QUANTIZE_INPUTS,
    profile_steps=PROFILE,
)
MULTIPLES = format_choice.precomputed_clip_multiples(FORMATS, 2, "gaussian", use_unsigned=True)


def batch(seed, size=16):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, size).astype(np.int32)
    images = rng.standard_normal((size, 6, 6, 1)).astype(np.float32) + labels[:, None, None, None]
    return {"input": jnp.asarray(images), "label": jnp.asarray(labels)}


def start(kind="searched", genome=None, search=SEARCH):
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
    for kind, genome in (("searched", None), ("uniform", None), ("fixed", [0, 2]), ("fixed", [2, 1])):
        state, _ = run(start(kind, genome), step=step)
        assert int(state.step) == TOTAL


def test_another_gradient_can_be_passed_in():
    search = dataclasses.replace(SEARCH, quantizer=interception.Quantizer(gradients.ewgs(0.1)))
    state, _ = run(start(), search=search)
    plain, _ = run(start())
    with pytest.raises(AssertionError):
        chex.assert_trees_all_close(state.params, plain.params)


def test_activations_are_stored_in_bfloat16(searched):
    """One program for all phases, whose state and metrics are float32 and near those of float32 activations."""
    search = dataclasses.replace(SEARCH, quantizer=interception.Quantizer(activations=jnp.bfloat16))
    state, history = run(start(), QUANTIZE_INPUTS + 1, search=search)
    plain, expected = searched
    chex.assert_trees_all_equal_shapes_and_dtypes(state, plain)
    differences = [after["loss"] - before["loss"] for (*_, after), (*_, before) in zip(history, expected, strict=False)]
    assert 0 < np.abs(differences).max() < 0.02


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
        changed = not np.array_equal(before.policies.logits, after.policies.logits)
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


def test_the_tightest_of_several_budgets_is_what_the_reward_sees():
    weights = analytic.WEIGHT_BYTES.table(PLAN)
    budgets = (*BUDGETS, pricing.Budget(weights, 5.0))
    search = dataclasses.replace(SEARCH, budgets=budgets, controller=reinforced(budgets))
    _, history = run(start("fixed", [2, 2], search=search), search=search)
    metrics = history[0][2]
    bits, kernel_entries = pricing.price_exactly(TABLE, np.asarray([2, 2])), sum(layer.weights for layer in LAYERS)
    assert metrics["cost"] == pytest.approx(bits)
    assert metrics["relative_cost"] == pytest.approx(max(bits / TARGET, 2 * kernel_entries / 5.0))
    assert 2 * kernel_entries / 5.0 > bits / TARGET  # bf16 weights are the tighter budget here


def test_fixed_policies_never_change():
    state, history = run(start("fixed", [1, 2]))
    np.testing.assert_array_equal(state.policies.logits, start("fixed", [1, 2]).policies.logits)
    assert all(list(metrics["genome"]) == [1, 2] for _, _, metrics in history)


def test_recalibration_averages_over_batches_and_changes_only_batch_statistics(searched):
    """The mean and variance of what the quantised convolution computes, in NumPy."""
    state, genome, batches = searched[0], jnp.asarray([0, 0]), [batch(50), batch(51)]
    recalibrate = make_recalibrate(SEARCH)
    variables = quantized_variables(SEARCH, state, genome, True)
    recalibrated = recalibrate(recalibrate(variables, batches[:1]), batches)
    captured = jax.jit(
        lambda state: interception.apply_quantized(
            Tiny(),
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

    settings = {"reward": absolute, "gamma": 0.3, "draws": 500, "evaluated": 4}
    found = random_search.best_of_random(SEARCH, start("uniform"), quality, jax.random.key(0), **settings)
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


# Within the budget, by Fisher scores.

FISHER = dataclasses.replace(
    SEARCH,
    controller=fisher.make_controller(PLAN.option_bits(), total_steps=TOTAL, examples=4)._replace(
        freeze_fraction=8 / TOTAL
    ),
    targets=(TARGET, 2.5 * TARGET),
)


@pytest.fixture(scope="module")
def fisher_step():
    return jax.jit(chex.assert_max_traces(make_search_step(FISHER), n=1))


@pytest.fixture(scope="module")
def by_scores(fisher_step):
    """A search for two targets, frozen by hand, in one compiled step."""
    state, first = run(start(search=FISHER), steps=FISHER.freeze_step, search=FISHER, step=fisher_step)
    frozen = freeze_genomes(FISHER, state)
    end, second = run(frozen, steps=TOTAL - FISHER.freeze_step, search=FISHER, step=fisher_step)
    return first, frozen, end, second


def test_each_target_is_met_in_expectation_at_every_step(by_scores):
    for i, (before, _, metrics) in enumerate(by_scores[0]):
        assert metrics["expected_cost"] == pytest.approx(1, abs=1e-4)
        target = FISHER.targets[i % 2]
        assert metrics["relative_cost"] == pytest.approx(pricing.price_exactly(TABLE, metrics["genome"]) / target)
        p = np.asarray(jax.nn.softmax(before.policies.logits), np.float64)
        costs = assignment.option_costs(SPACE, TABLE)
        np.testing.assert_allclose((p * costs).sum((1, 2)), FISHER.targets, rtol=1e-4)


def test_frozen_genomes_are_the_knapsack_of_the_scores_and_are_trained_in_turn(by_scores):
    _, frozen, end, second = by_scores
    losses = np.asarray(frozen.controller.losses, np.float64)
    genomes = list(np.ndindex(3, 3))
    for number, target in enumerate(FISHER.targets):
        affordable = [g for g in genomes if pricing.price_exactly(TABLE, np.asarray(g)) <= target]
        best = min(affordable, key=lambda g: losses[0, g[0]] + losses[1, g[1]])
        assert tuple(settled_genomes(FISHER, end)[number]) == tuple(frozen.policy(number).mode()) == best
    for i, (_, _, metrics) in enumerate(second):
        np.testing.assert_array_equal(metrics["genome"], frozen.policy((FISHER.freeze_step + i) % 2).mode())
    np.testing.assert_array_equal(end.controller.losses, frozen.controller.losses)


def test_scores_are_a_mean_over_steps_at_first_and_fall_with_bits(by_scores):
    first = by_scores[0][0][1].controller.losses
    second = by_scores[0][1][1].controller.losses
    assert (np.asarray(first)[:, 0] > 0).all()
    assert (np.diff(second, axis=1) < 0).all()
    assert freeze_genomes(FISHER, by_scores[2]) is by_scores[2]


def test_fixed_genomes_share_the_step_of_a_search_and_measure_nothing(fisher_step):
    state, history = run(start("fixed", [1, 0], search=FISHER), search=FISHER, step=fisher_step)
    assert not np.asarray(state.controller.losses).any()
    assert all(list(metrics["genome"]) == [1, 0] for _, _, metrics in history)
