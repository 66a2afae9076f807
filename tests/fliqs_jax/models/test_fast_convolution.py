from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fliqs_jax.models import fast_convolution
from hwcost import workload

DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def assert_close(ours, theirs, tolerance):
    """Of one type, and no further apart than the tolerance, relative to single values or to the largest."""
    assert ours.dtype == theirs.dtype
    largest = np.float32(abs(theirs).max())
    np.testing.assert_allclose(np.float32(ours), np.float32(theirs), rtol=tolerance, atol=tolerance * largest)


@pytest.mark.parametrize(
    ("size", "kernel", "groups", "strides", "padding"),
    [
        ((8, 8), (5, 5, 1, 4), 4, (1, 1), [(2, 2), (2, 2)]),
        ((9, 6), (3, 3, 1, 4), 4, (2, 2), [(1, 1), (1, 1)]),
        ((7, 10), (7, 3, 1, 4), 4, (1, 3), [(3, 3), (0, 1)]),
        ((5, 5), (3, 3, 1, 4), 4, (2, 1), [(0, 0), (2, 0)]),
        ((6, 6), (1, 1, 1, 4), 4, (2, 2), [(0, 0), (0, 0)]),
        ((6, 5), (1, 1, 4, 7), 1, (1, 1), [(0, 0), (0, 0)]),
    ],
)
def test_values_and_gradients_are_those_of_xla(size, kernel, groups, strides, padding):
    x = jax.random.normal(jax.random.key(0), (3, *size, 4))
    k = jax.random.normal(jax.random.key(1), kernel)
    settings = {"window_strides": strides, "padding": padding, "feature_group_count": groups}

    def with_gradients(conv):
        def loss(x, k):
            y = conv(x, k, **settings, dimension_numbers=DIMENSIONS)
            return jnp.sum(jnp.sin(y)), y

        (_, y), gradients = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(x, k)
        return y, *gradients

    ours_alone = partial(fast_convolution.conv_general_dilated, **settings, dimension_numbers=DIMENSIONS)
    assert "platform_index" in str(jax.make_jaxpr(ours_alone)(x, k))
    for ours, theirs in zip(
        with_gradients(fast_convolution.conv_general_dilated), with_gradients(jax.lax.conv_general_dilated), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=2e-5)


TYPES = [
    ("float32", None),
    ("float32", "float32"),
    ("bfloat16", None),
    ("bfloat16", "float32"),
    ("float16", None),
    ("float16", "float32"),
]


@pytest.mark.parametrize(
    ("kernel", "groups", "strides", "padding"),
    [
        ((5, 3, 1, 32), 32, (1, 2), [(2, 2), (1, 0)]),
        ((3, 3, 1, 32), 32, (2, 2), [(1, 1), (1, 1)]),
        ((1, 1, 32, 24), 1, (1, 1), [(0, 0), (0, 0)]),
    ],
    ids=["depthwise", "strided", "pointwise"],
)
@pytest.mark.parametrize(("operands", "preferred"), TYPES)
def test_types_are_those_of_xla_and_sums_are_float32(operands, preferred, kernel, groups, strides, padding):
    x = jax.random.normal(jax.random.key(0), (4, 9, 8, 32), operands)
    k = jax.random.normal(jax.random.key(1), kernel, operands)
    settings = {"window_strides": strides, "padding": padding, "feature_group_count": groups}

    def with_gradients(conv, x, k, **types):
        def run(x, k, seen):
            y, back = jax.vjp(partial(conv, **settings, dimension_numbers=DIMENSIONS, **types), x, k)
            return y, *back(seen.astype(y.dtype))

        shape = jax.eval_shape(partial(conv, **settings, dimension_numbers=DIMENSIONS), x, k).shape
        return jax.jit(run)(x, k, jax.random.normal(jax.random.key(2), shape, operands))

    types = {"preferred_element_type": preferred} if preferred else {}
    ours = with_gradients(fast_convolution.conv_general_dilated, x, k, **types)
    theirs = with_gradients(jax.lax.conv_general_dilated, x, k, **types)
    exact = with_gradients(jax.lax.conv_general_dilated, *(v.astype(jnp.float32) for v in (x, k)))
    for value, other, sum_in_float32 in zip(ours, theirs, exact, strict=True):
        rounding = float(jnp.finfo(value.dtype).eps)
        assert_close(value, other, 4 * rounding)
        # Rounded once: half a step at most from the sum in float32.
        np.testing.assert_allclose(np.float32(value), sum_in_float32, rtol=0.5 * rounding + 1e-5, atol=1e-4)


def test_types_that_xla_refuses_are_refused():
    conv = partial(
        fast_convolution.conv_general_dilated, window_strides=(1, 1), padding=[(0, 0)] * 2, dimension_numbers=DIMENSIONS
    )
    x, k = jnp.ones((1, 6, 6, 4)), jnp.ones((1, 1, 4, 8))
    with pytest.raises(TypeError, match="same dtypes, got float32, bfloat16"):
        conv(x, k.astype(jnp.bfloat16))
    with pytest.raises(TypeError, match="must not be narrower"):
        conv(x, k, preferred_element_type=jnp.bfloat16)


@pytest.mark.parametrize(("kernel", "groups"), [((3, 3, 1, 4), 4), ((1, 1, 4, 6), 1)])
@pytest.mark.parametrize("axes", [(0, 0), (None, 0), (0, None)])
def test_batches_of_convolutions_are_those_of_xla(kernel, groups, axes):
    x = jax.random.normal(jax.random.key(0), (3, 2, 6, 6, 4), jnp.bfloat16)
    k = jax.random.normal(jax.random.key(1), (3, *kernel), jnp.bfloat16)
    edge = kernel[0] // 2

    def batched(conv):
        def run(x, k):
            y = conv(x, k, (1, 1), [(edge, edge)] * 2, dimension_numbers=DIMENSIONS, feature_group_count=groups)
            return y.astype(jnp.float32).sum(), y

        together = jax.vmap(jax.value_and_grad(run, (0, 1), has_aux=True), axes)
        return jax.jit(together)(*(v if axis == 0 else v[0] for v, axis in zip((x, k), axes, strict=True)))

    ours, theirs = batched(fast_convolution.conv_general_dilated), batched(jax.lax.conv_general_dilated)
    for value, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert_close(value, other, 0.02)


def test_other_convolutions_are_left_to_xla():
    def text(kernel, groups=1, stride=1, padding=((0, 0), (0, 0)), dimensions=DIMENSIONS, dtype="float32", **settings):
        return str(
            jax.make_jaxpr(
                partial(
                    fast_convolution.conv_general_dilated,
                    window_strides=(stride, stride),
                    padding=padding,
                    feature_group_count=groups,
                    dimension_numbers=dimensions,
                    **settings,
                )
            )(jnp.ones((2, 6, 6, 4), dtype), jnp.ones(kernel, dtype))
        )

    around = [(1, 1), (1, 1)]
    for other in (
        text((3, 3, 4, 8), padding=around),
        text((3, 3, 1, 4), 4, padding="SAME"),
        text((3, 3, 1, 8), 4, padding=around),
        text((1, 1, 4, 8), stride=2),
        text((1, 1, 4, 8), padding=[(1, 0), (0, 0)]),
        text((1, 1, 2, 8), 2),
        text((3, 3, 1, 4), 4, padding=around, rhs_dilation=(2, 1)),
        text((1, 1, 4, 8), batch_group_count=2),
        text((1, 1, 4, 8), dtype="int8", preferred_element_type=jnp.int32),
        # These would pass for the layout that ours has.
        text((1, 1, 4, 8), dimensions=("NHWC", "HWIO", "NCHW")),
        text((1, 1, 4, 4), dimensions=("NHWC", "HWOI", "NHWC")),
        text((7, 7, 1, 4), 4),  # gives no values
    ):
        assert "platform_index" not in other
        assert other.count("conv_general_dilated[") == 1
    assert "platform_index" in text((5, 5, 1, 4), 4)


@pytest.mark.parametrize("preferred", [None, "float32"])
def test_layers_compute_in_the_type_that_they_are_told(preferred):
    class Network(nn.Module):
        conv: object

        @nn.compact
        def __call__(self, x):
            layer = partial(nn.Conv, dtype=jnp.bfloat16, conv_general_dilated=self.conv)
            x = nn.relu(layer(16, (1, 1), padding="VALID", name="expand")(x))
            x = layer(16, (1, 1), padding=[(0, 0), (0, 0)], name="point")(x)
            return layer(16, (3, 3), padding=[(1, 1), (1, 1)], feature_group_count=16, name="depth")(x)

    def run(conv):
        network = Network(partial(conv, preferred_element_type=preferred))
        x = jax.random.normal(jax.random.key(0), (2, 6, 6, 4))
        params = network.init(jax.random.key(1), x)

        def loss(params):
            y = network.apply(params, x)
            return jnp.mean(jnp.square(y.astype(jnp.float32))), y

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

    ours, theirs = run(fast_convolution.conv_general_dilated), run(jax.lax.conv_general_dilated)
    for value, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert_close(value, other, 0.03)


def test_layers_are_counted_as_before():
    def layer(conv):
        return nn.Conv(
            4, (3, 3), feature_group_count=4, padding=[(1, 1), (1, 1)], conv_general_dilated=conv, name="layer"
        )

    class Network(nn.Module):
        conv: object

        @nn.compact
        def __call__(self, x):
            return layer(self.conv)(x)

    [ours], [theirs] = (
        workload.trace(Network(conv), (6, 6, 4))
        for conv in (fast_convolution.conv_general_dilated, jax.lax.conv_general_dilated)
    )
    assert ours == theirs
