"""Fisher scores of a float network against finite differences of its loss, in NumPy float64."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from aqt_like import format_choice, interception
from aqt_like.formats import format_space
from fliqs_jax import distillation, layer_sensitivity, losses, reinforce
from fliqs_jax.models.call_finding import called
from fliqs_jax.policy import init_policy
from fliqs_jax.quality import accuracy
from fliqs_jax.reward import absolute
from fliqs_jax.schedule import cosine
from fliqs_jax.search import Search, init_state
from hwcost import analytic, pricing, workload
from hwcost.format_plan import format_plan

FORMATS = format_space("int2,int4,int8")
BITS = (2, 4, 8)
SMOOTHING, SIZE, EPSILON = 0.1, 12, 1e-5


class Tiny(nn.Module):
    """The input of the first layer has both signs, that of the second is never negative."""

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Dense(7, name="first")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, name="norm")(x))
        return nn.Dense(3, name="head")(x)


PLAN = format_plan(workload.trace(Tiny(), (5,), train=False), FORMATS)
BUDGETS = (pricing.Budget(analytic.BIT_OPERATIONS.table(PLAN), 1e4),)
SEARCH = Search(
    model=called(Tiny()),
    plan=PLAN,
    bank=format_choice.format_bank(FORMATS, use_unsigned=True),
    budgets=BUDGETS,
    optimizer=optax.sgd(0.05),
    loss=losses.cross_entropy(SMOOTHING),
    quality=accuracy,
    controller=reinforce.make_controller(
        PLAN.space,
        BUDGETS,
        reward=absolute,
        gamma=0.3,
        optimizer=optax.adam(0.02),
        baseline_momentum=0.9,
        entropy_schedule=cosine,
        entropy_end=0.5,
        warmup_steps=1,
        total_steps=4,
    ),
    total_steps=4,
    input_quantization_step=1,
    profile_steps=1,
)
MULTIPLES = format_choice.precomputed_clip_multiples(FORMATS, 2, "gaussian", use_unsigned=True)


def batch(seed):
    rng = np.random.default_rng(seed)
    inputs = rng.standard_normal((SIZE, 5)).astype(np.float32)
    return {"input": inputs, "label": rng.integers(0, 3, SIZE).astype(np.int32)}


@pytest.fixture(scope="module")
def state():
    """A state with inputs profiled on a batch, and batch statistics of their own."""
    start = init_state(SEARCH, init_policy(PLAN.space, "uniform"), MULTIPLES, jax.random.key(0), batch(0)["input"])
    rng = np.random.default_rng(1)
    statistics = {"mean": rng.standard_normal(7), "var": rng.uniform(0.5, 2, 7)}
    start = start._replace(batch_stats={"norm": jax.tree.map(jnp.float32, statistics)})
    variables = {"params": start.params, "batch_stats": start.batch_stats, "calibration": start.calibration}
    _, updated = interception.apply_quantized(
        Tiny(), variables, batch(2)["input"], train=False, mutable=["calibration"]
    )
    return start._replace(calibration=updated["calibration"])


def quantized(x, bits, clip, *, unsigned):
    levels = 2**bits - 1 if unsigned else 2 ** (bits - 1) - 1
    return np.clip(np.round(x / clip * levels), 0 if unsigned else -levels, levels) * clip / levels


def losses_by_hand(state, changes, examples):
    """The loss of each example, float64[B], and the inputs of both layers, with something added to operands."""
    params, statistics = jax.tree.map(np.float64, (state.params, state.batch_stats["norm"]))
    first = examples["input"] + changes.get("first input", 0)
    y = first @ (params["first"]["kernel"] + changes.get("first kernel", 0)) + params["first"]["bias"]
    y = (y - statistics["mean"]) / np.sqrt(statistics["var"] + 1e-5) * params["norm"]["scale"] + params["norm"]["bias"]
    head = np.maximum(y, 0)
    shifted = head + changes.get("head input", 0)
    logits = shifted @ (params["head"]["kernel"] + changes.get("head kernel", 0)) + params["head"]["bias"]
    targets = np.eye(3)[examples["label"]] * (1 - SMOOTHING) + SMOOTHING / 3
    log_sums = np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return -(targets * (logits - log_sums)).sum(axis=1), {"first": examples["input"], "head": head}


def fisher_by_hand(state, examples):
    """Half the square of the change of the loss along each rounding error, by central differences."""

    def change(name, error):
        upper, lower = (losses_by_hand(state, {name: sign * EPSILON * error}, examples)[0] for sign in (1, -1))
        return (upper - lower) / (2 * EPSILON)

    scores = np.zeros((2, 3))
    for layer, path in enumerate(SEARCH.paths):
        x = losses_by_hand(state, {}, examples)[1][path]
        kernel = np.float64(state.params[path]["kernel"])
        spread = np.sqrt(np.float64(state.calibration[path]["input"].mean_square))
        for k, bits in enumerate(BITS):
            unsigned = path == "head"
            multiples = MULTIPLES.unsigned_inputs if unsigned else MULTIPLES.inputs
            error = quantized(x, bits, np.float64(multiples[layer, k]) * spread, unsigned=unsigned) - x
            scores[layer, k] += np.mean(change(f"{path} input", error) ** 2) / 2
            clip = np.float64(MULTIPLES.weights[layer, k]) * np.sqrt(np.mean(kernel**2, axis=0))
            error = quantized(kernel, bits, clip, unsigned=False) - kernel
            # The whole batch shares the weights; B times the square of the mean stands for the mean of squares.
            scores[layer, k] += SIZE * np.mean(change(f"{path} kernel", error)) ** 2 / 2
    return scores


def test_fisher_scores_are_half_the_squared_change_of_the_loss_of_the_float_network(state):
    batches = [batch(3), batch(4)]
    expected = np.mean([fisher_by_hand(state, examples) for examples in batches], axis=0)
    found = layer_sensitivity.fisher_over(SEARCH, state, batches)
    assert found.shape == (2, 3)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-9)
    assert (expected > 1e-8).all()


def test_batches_that_do_not_do_are_told(state):
    padded = batch(3)
    padded["label"][-2:] = -1
    with pytest.raises(ValueError, match="padded"):
        layer_sensitivity.fisher_over(SEARCH, state, [padded])
    with pytest.raises(ValueError, match="no batches"):
        layer_sensitivity.fisher_over(SEARCH, state, [])
    taught = dataclasses.replace(SEARCH, loss=distillation.distilled(SEARCH.loss, weight=0.5, temperature=2.0))
    with pytest.raises(ValueError, match="the loss reads 'teacher_logits', but a batch has only input, label"):
        layer_sensitivity.fisher_over(taught, state, [batch(3)])
