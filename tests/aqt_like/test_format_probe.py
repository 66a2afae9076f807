"""Probes of formats against slopes at the operands of a network that is written by hand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aqt_like import calibration, format_choice, gradients, interception
from aqt_like.formats import parse_layer_format

FORMATS = [parse_layer_format(name) for name in ("int2", "int4", "e2m1")]
BANK = format_choice.format_bank(FORMATS, use_unsigned=True)
EXAMPLES, PROBED = 12, 4
X = jnp.asarray(np.random.default_rng(0).standard_normal((EXAMPLES, 6)), jnp.float32)
GOAL = jnp.asarray(np.random.default_rng(1).standard_normal((EXAMPLES, 7)), jnp.float32)
PATHS = ("first", "second")


class Twice(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(5, name="second")(nn.relu(nn.Dense(7, name="first")(x)))


class Repeated(nn.Module):
    """The same layer three times, with parameters of its own, in a loop or one after the other."""

    loop: bool

    @nn.compact
    def __call__(self, x):
        def body(layer, x):
            return nn.tanh(layer(x)), None

        if self.loop:
            layers = nn.scan(
                lambda module, x, _: body(module, x), variable_axes={"params": 0}, split_rngs={"params": True}, length=3
            )
            return layers(nn.Dense(6, name="layer"), x, None)[0]
        for i in range(3):
            x, _ = body(nn.Dense(6, name=f"layer{i}"), x)
        return x


def loss_of(y):
    return jnp.mean(jnp.sum(jnp.square(y - GOAL[:, : y.shape[1]]), axis=-1))


def setting(model, paths):
    variables = model.init(jax.random.key(0), X)
    profiles = interception.profile_inputs(model, variables, X)
    profile = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(profiles[path] for path in paths))
    multiples = format_choice.precomputed_clip_multiples(FORMATS, len(paths), "gaussian", use_unsigned=True)
    return variables, profile, multiples


def probed_scores(model, paths, variables, profile, multiples, choice, *, active=True):
    chosen = format_choice.chosen_formats(BANK, multiples, choice, profile, jnp.asarray(True))

    def loss(zeros):
        probe = format_choice.probe_all_formats(
            BANK, multiples, profile, zeros, active=jnp.asarray(active), examples=PROBED
        )
        formats = interception.by_layer(paths, chosen._replace(probe=probe))
        return loss_of(interception.apply_quantized(model, {**variables, "formats": formats}, X))

    return jax.jit(jax.value_and_grad(loss))(jnp.zeros((len(paths), 2, len(FORMATS))))


def rows(profile, multiples, choice):
    return format_choice.chosen_formats(BANK, multiples, jnp.asarray(choice), profile, jnp.asarray(True))


def quantized(values, row, clip):
    return np.asarray(gradients.straight_through(values, row, clip))


@pytest.mark.parametrize("choice", [(0, 1), (2, 0)])
def test_scores_are_squared_products_of_slopes_and_rounding_errors(choice):
    variables, profile, multiples = setting(Twice(), PATHS)
    kernels = [variables["params"][path]["kernel"] for path in PATHS]
    own = rows(profile, multiples, choice)

    def clip(kernel, row):
        return row.clip_multiple * calibration.root_mean_square(kernel, (0,))

    def forward(at_inputs, at_kernels):
        """The network with something added to its quantised operands; also their float values."""
        x, seen = X, []
        for i, kernel in enumerate(kernels):
            row = jax.tree.map(lambda leaf, i=i: leaf[i], own)
            seen.append((x, kernel))
            x = quantized_inputs(x, row) + at_inputs[i]
            w = gradients.straight_through(kernel, row.weights, clip(kernel, row.weights)) + at_kernels[i]
            x = x @ w + variables["params"][PATHS[i]]["bias"]
            x = nn.relu(x) if i == 0 else x
        return loss_of(x), seen

    def quantized_inputs(x, row):
        return gradients.straight_through(x, row.inputs, row.input_clip)

    zeros = [jnp.zeros((EXAMPLES, 6)), jnp.zeros((EXAMPLES, 7))], [jnp.zeros(kernel.shape) for kernel in kernels]
    (of_inputs, of_kernels), seen = jax.grad(forward, argnums=(0, 1), has_aux=True)(*zeros)
    expected = np.zeros((2, 2, len(FORMATS)))
    picked = np.arange(0, EXAMPLES, EXAMPLES // PROBED)
    for k in range(len(FORMATS)):
        each = rows(profile, multiples, (k, k))
        for i, (x, kernel) in enumerate(seen):
            row = jax.tree.map(lambda leaf, i=i: leaf[i], each)
            error = quantized(kernel, row.weights, clip(kernel, row.weights)) - np.asarray(kernel)
            expected[i, 0, k] = np.sum(np.asarray(of_kernels[i], np.float64) * error) ** 2
            error = quantized(x, row.inputs, row.input_clip) - np.asarray(x)
            changes = np.sum(np.asarray(of_inputs[i], np.float64) * error, axis=1)
            expected[i, 1, k] = EXAMPLES * np.mean(changes[picked] ** 2)
    loss, found = probed_scores(Twice(), PATHS, variables, profile, multiples, jnp.asarray(choice))
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=1e-9)
    assert (expected > 0).all()
    assert loss == pytest.approx(float(forward(*zeros)[0]), rel=1e-5)


def test_a_probe_that_is_not_active_measures_nothing_and_changes_nothing():
    arguments = *setting(Twice(), PATHS), jnp.asarray([0, 0])
    loss, found = probed_scores(Twice(), PATHS, *arguments, active=False)
    assert not found.any()
    assert loss == probed_scores(Twice(), PATHS, *arguments)[0]


def test_repetitions_in_a_loop_have_scores_of_their_own():
    paths = tuple(f"layer[{i}]" for i in range(3))
    variables, profile, multiples = setting(Repeated(loop=True), paths)
    unrolled = {f"layer{i}": jax.tree.map(lambda leaf, i=i: leaf[i], variables["params"]["layer"]) for i in range(3)}
    choice = jnp.asarray([0, 1, 2])
    looped = probed_scores(Repeated(loop=True), paths, variables, profile, multiples, choice)
    names = tuple(unrolled)
    straight = probed_scores(Repeated(loop=False), names, {"params": unrolled}, profile, multiples, choice)
    np.testing.assert_allclose(looped[1], straight[1], rtol=1e-4)
    assert (looped[1] > 0).all()
