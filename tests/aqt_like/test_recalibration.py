"""Recalibration of one network that has every kind of layer with running state, against statistics by NumPy."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aqt_like import recalibration

norm = functools.partial(nn.BatchNorm, use_running_average=False)


class Doubling(nn.Module):
    """A layer of a scan: its normalisation sees x, 2x, 4x in turn."""

    @nn.compact
    def __call__(self, x, _):
        norm(name="norm")(x)
        return 2 * x, None


class OwnNorm(nn.BatchNorm):
    def __call__(self, x, **kwargs):
        return super().__call__(x, **kwargs)


class OwnAverage(nn.Module):
    """Running state with the names of a batch normalisation."""

    @nn.compact
    def __call__(self, x):
        for name in ("mean", "var", "steps"):
            self.variable("batch_stats", name, lambda: jnp.zeros(())).value += 1


class Everything(nn.Module):
    """Every branch sees the input of shape [B, 3] itself."""

    @nn.compact
    def __call__(self, x):
        norm(name="plain")(x)
        norm(momentum=1.0, name="still")(x)
        norm(name="frozen", use_running_average=True)(x)
        OwnNorm(use_running_average=False, name="own")(x)
        norm(name="half", param_dtype=jnp.float16, force_float32_reductions=False)(x.astype(jnp.float16))
        shared = nn.jit(nn.BatchNorm)(use_running_average=False, name="shared")
        shared(x)
        shared(3 * x + 1)
        nn.remat(nn.BatchNorm)(use_running_average=False, name="remat")(x)
        nn.jit(nn.BatchNorm)(use_running_average=True, name="frozen_jit")(x)
        axes = {"params": 0, "batch_stats": 0}
        split = {"params": True}
        nn.vmap(nn.BatchNorm, in_axes=1, variable_axes=axes, split_rngs=split)(False, name="mapped")(x[:, :, None])
        synchronised = nn.vmap(
            nn.BatchNorm,
            variable_axes={"params": None, "batch_stats": None},
            split_rngs={"params": False},
            axis_name="b",
        )
        synchronised(False, axis_name="b", name="synchronised")(x.reshape(2, -1, 3))
        nn.scan(Doubling, variable_axes=axes, split_rngs=split, length=3)(name="scan")(x, None)
        if not self.is_initializing():  # A scan does not initialise variables that it carries.
            carry = nn.scan(Doubling, variable_carry="batch_stats", variable_broadcast="params", length=3)
            carry(name="carry")(x, None)
        nn.SpectralNorm(nn.Dense(3), name="spectral")(x, update_stats=True)
        OwnAverage(name="average")(x)


@pytest.fixture(scope="module")
def recalibrated():
    rng = np.random.default_rng(0)
    batches = [(2 * rng.standard_normal((8, 3)) + [0, 1, -2]).astype(np.float32) for _ in range(4)]
    model = Everything()
    variables = jax.jit(model.init)(jax.random.key(0), batches[0])
    for collection in variables.values():
        collection["carry"] = {"norm": jax.tree.map(jnp.copy, collection["plain"])}
    before = variables["batch_stats"]
    before["plain"] = {"mean": jnp.full(3, jnp.nan), "var": jnp.full(3, jnp.inf)}  # The average of an earlier overflow.
    update = lambda x: lambda v: model.apply(v, x, mutable=["batch_stats"])[1]  # noqa: E731
    sums = jax.jit(lambda variables, x: recalibration.batch_sums(update(x), variables))
    after = recalibration.recalibrated(before, (sums(variables, x) for x in batches))
    return batches, before, after, lambda x: sums(variables, x)


def mean_statistics(batches):
    """The mean over batches of mean and biased variance, in float64."""
    batches = np.asarray(batches, np.float64)
    mean = batches.mean(axis=1, keepdims=True)
    return {"mean": mean.mean((0, 1)), "var": ((batches - mean) ** 2).mean(axis=1).mean(axis=0)}


def test_statistics_are_plain_means_over_batches(recalibrated):
    batches, before, after, _ = recalibrated
    x = np.asarray(batches)
    plain = mean_statistics(x)
    for name in ("plain", "still", "own", "remat"):
        chex.assert_trees_all_close(after[name], plain, rtol=1e-5)
    chex.assert_trees_all_close(after["half"], plain, rtol=4e-3, atol=4e-3)
    chex.assert_trees_all_close(jax.tree.map(np.ravel, after["mapped"]), plain, rtol=1e-5)
    chex.assert_trees_all_close(after["synchronised"], plain, rtol=1e-5)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, before)


def test_a_layer_called_several_times_gets_the_mean_over_its_calls(recalibrated):
    batches, _, after, _ = recalibrated
    x = np.asarray(batches)
    chex.assert_trees_all_close(after["shared"], mean_statistics([*x, *(3 * x + 1)]), rtol=1e-5)
    chex.assert_trees_all_close(after["carry"]["norm"], mean_statistics([*x, *(2 * x), *(4 * x)]), rtol=1e-5)
    for i in range(3):
        layer = {name: value[i] for name, value in after["scan"]["norm"].items()}
        chex.assert_trees_all_close(layer, mean_statistics(2**i * x), rtol=1e-5)


def test_other_running_state_is_left_alone(recalibrated):
    _, before, after, _ = recalibrated
    for name in ("frozen", "frozen_jit", "spectral", "average"):
        chex.assert_trees_all_equal(after[name], before[name])
    assert set(before["average"]) == {"mean", "var", "steps"}
    chex.assert_trees_all_equal(recalibration.recalibrated(before, []), before)


def test_a_batch_that_is_not_finite_is_refused_with_layer_and_number(recalibrated):
    batches, before, _, sums = recalibrated
    bad = batches[1].copy()
    bad[2, 1] = np.nan
    message = r"batch statistics of .*: the mean is not finite in recalibration batch 2 \(the first is 1\)"
    with pytest.raises(recalibration.StatisticsError, match=message):
        recalibration.recalibrated(before, map(sums, [batches[0], bad]))
