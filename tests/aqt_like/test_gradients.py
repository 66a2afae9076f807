"""The estimators against the formulas of their papers, written again in NumPy."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import aqt_like
from aqt_like import gradients
from aqt_like.formats import format_table, parse_format

NAMES = ["int4", "uint4", "int8", "e2m1", "e4m3"]
CLIP = 1.5
ESTIMATORS = {"straight_through": gradients.straight_through, "ewgs": gradients.ewgs(1e-3)}


def row_of(name):
    return format_table([parse_format(name)], [1.0]).row(0)


def tensor(shape=(64, 16)):
    return jax.random.normal(jax.random.key(0), shape)


def gradients_of(estimator, name, x, clip, cotangent):
    def loss(x, clip):
        return jnp.sum(estimator(x, row_of(name), clip) * cotangent)

    return [np.asarray(g) for g in jax.jit(jax.grad(loss, (0, 1)))(x, jnp.asarray(clip))]


def below_above(name, x, clip):
    return x < (0 if name[0] == "u" else -clip), x > clip


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("name", [*NAMES, "bf16", "fp32"])
def test_values_are_those_of_the_plain_quantiser_bit_for_bit(estimator, name):
    x = jnp.concatenate([tensor().ravel(), jnp.asarray([0.0, -0.0, 1e-30, 7.0, -7.0])])
    for clip in (0.7, 1.5, 2.0):
        y = jax.jit(ESTIMATORS[estimator])(x, row_of(name), jnp.asarray(clip))
        expected = aqt_like.quantize(x, name, clip=clip)
        np.testing.assert_array_equal(np.asarray(y).view(np.int32), np.asarray(expected).view(np.int32))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_one_compilation_serves_all_formats_under_jit_vmap_and_scan(estimator):
    x, clip = tensor(), jnp.asarray(CLIP)
    table = format_table([parse_format(name) for name in [*NAMES, "bf16"]], [1.0] * 6)

    def step(row):
        return jax.value_and_grad(lambda x: jnp.sum(jnp.sin(ESTIMATORS[estimator](x, row, clip))))(x)

    chex.clear_trace_counter()
    one = jax.jit(chex.assert_max_traces(step, n=1))
    expected = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(one(table.row(k)) for k in range(6)))
    _, scanned = jax.lax.scan(lambda _, row: (None, step(row)), None, table)
    for other in (jax.vmap(step)(table), scanned):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), other, expected)


@pytest.mark.parametrize("name", NAMES)
def test_straight_through(name):
    x, g = tensor(), tensor((64, 16)) + 1
    below, above = below_above(name, x, CLIP)
    to_x, to_clip = gradients_of(gradients.straight_through, name, x, CLIP, g)
    np.testing.assert_allclose(to_x, np.where(below | above, 0, g), rtol=1e-6)
    assert to_clip == 0


@pytest.mark.parametrize("name", NAMES)
def test_ewgs_scales_by_the_distance_to_the_code(name):
    x, g = tensor(), tensor((64, 16)) - 0.2
    below, above = below_above(name, x, CLIP)
    span = CLIP if name[0] == "u" else 2 * CLIP
    distance = (x - aqt_like.quantize(x, name, clip=CLIP)) / span
    to_x, to_clip = gradients_of(gradients.ewgs(0.5), name, x, CLIP, g)
    np.testing.assert_allclose(
        to_x, np.where(below | above, 0, g * (1 + 0.5 * np.sign(g) * distance)), rtol=1e-4, atol=1e-6
    )
    assert to_clip == 0


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_threshold_of_zero_gives_finite_values_and_gradients(estimator):
    def loss(x, clip):
        return jnp.sum(ESTIMATORS[estimator](x, row_of("int4"), clip))

    value, slopes = jax.value_and_grad(loss, (0, 1))(jnp.zeros(4), jnp.zeros(()))
    assert value == 0
    assert all(np.isfinite(slope).all() for slope in slopes)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("name", ["int8", "e4m3"])
def test_tiny_and_huge_thresholds_give_the_nearest_values_and_finite_gradients(estimator, name):
    clip = np.asarray([1e-45, 1e-38, 1e-37, 1e-36, 1.0, 3e38, np.finfo(np.float32).max], np.float32)
    x = (np.random.default_rng(0).uniform(-1, 1, (20, 7)) * clip).astype(np.float32)
    x[:, 2] = 9e-38

    @jax.jit
    def value_and_slope(x):
        y, pullback = jax.vjp(lambda x: ESTIMATORS[estimator](x, row_of(name), jnp.asarray(clip)), x)
        return y, pullback(jnp.ones_like(y))[0]

    y, slope = value_and_slope(x)
    magnitudes = parse_format(name).magnitudes()
    scaled = np.abs(x.astype(np.float64)) / clip * magnitudes[-1]
    nearest = magnitudes[np.abs(scaled[..., None] - magnitudes).argmin(-1)]
    expected = np.sign(x) * nearest * (clip / magnitudes[-1])
    # Below 2^-93, scales stay at 2^-126: the grid of a float is coarser than its own, that of an integer is not.
    np.testing.assert_allclose(y[:, 4:], expected[:, 4:], rtol=1e-6)
    np.testing.assert_allclose(y, expected, rtol=0.1 if name == "e4m3" else 1e-6, atol=2.0**-126)
    assert np.isfinite(slope).all()
