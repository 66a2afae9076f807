from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fliqs_jax.models import fast_convolution
from hwcost import workload

DIMENSIONS = ("NHWC", "HWIO", "NHWC")


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


def test_other_convolutions_are_left_to_xla():
    x = jnp.ones((1, 6, 6, 4))
    for kernel, groups, stride, padding in (
        ((3, 3, 4, 8), 1, 1, [(1, 1), (1, 1)]),
        ((3, 3, 1, 4), 4, 1, "SAME"),
        ((1, 1, 4, 8), 1, 2, [(0, 0), (0, 0)]),
        ((1, 1, 4, 8), 1, 1, [(1, 0), (0, 0)]),
        ((1, 1, 2, 8), 2, 1, [(0, 0), (0, 0)]),
    ):
        settings = {"window_strides": (stride, stride), "padding": padding, "feature_group_count": groups}
        conv = partial(fast_convolution.conv_general_dilated, **settings, dimension_numbers=DIMENSIONS)
        text = str(jax.make_jaxpr(conv)(x, jnp.ones(kernel)))
        assert "platform_index" not in text
        assert text.count("conv_general_dilated[") == 1


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
