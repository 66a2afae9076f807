import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from apq_jax import architectures, supernet
from apq_jax.architecture_space import Stage

SPACE = dataclasses.replace(architectures.find("digits"), stages=(Stage(8, 1, 1, 2),))  # two blocks
FULL = SPACE.family.largest
X = jax.random.normal(jax.random.key(9), (4, 8, 8, 1))


@pytest.fixture(scope="module")
def trained():
    """Weights in which nothing is at its start, kernel maps included."""
    weights, stats = supernet.init(SPACE, jax.random.key(0))
    leaves, structure = jax.tree.flatten((weights, stats))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [leaf + 0.1 * jax.random.uniform(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(structure, moved)


@jax.jit
def under(weights, stats, genome):
    params = supernet.specialised(SPACE, weights, genome)
    return FULL.apply({"params": params, "batch_stats": stats}, X, train=False)


def test_networks_cut_out_compute_what_the_specialised_one_does(trained):
    weights, stats = trained
    compiled = under._cache_size()
    for genome in (SPACE.smallest, SPACE.largest, *(SPACE.sample(jax.random.key(i)) for i in range(4))):
        smaller, variables = supernet.cut_out(SPACE, weights, stats, np.asarray(genome))
        cut = jax.jit(lambda v, smaller=smaller: smaller.apply(v, X, train=False))(variables)
        np.testing.assert_allclose(cut, under(weights, stats, jnp.asarray(genome)), atol=2e-6)
        fresh = jax.eval_shape(lambda smaller=smaller: smaller.init(jax.random.key(0), X, train=False))
        assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, fresh)
    assert under._cache_size() == compiled + 1


def test_the_largest_network_is_left_as_it_is(trained):
    weights, stats = trained
    plain = FULL.apply({"params": weights.params, "batch_stats": stats}, X, train=False)
    np.testing.assert_allclose(under(weights, stats, jnp.asarray(SPACE.largest)), plain, atol=1e-6)


def test_small_kernels_are_made_of_the_inside_of_large_ones(trained):
    weights, _ = trained
    genome = np.array(SPACE.largest)
    genome[SPACE.search_space.index("stage1_block1.kernel")] = 0
    kernel = supernet.specialised(SPACE, weights, genome)["stage1_block1"]["depthwise"]["conv"]["kernel"]
    large = np.asarray(weights.params["stage1_block1"]["depthwise"]["conv"]["kernel"])
    mapped = np.asarray(weights.kernels["stage1_block1.kernel"]["5to3"]) @ large[1:4, 1:4].reshape(9, -1)
    np.testing.assert_allclose(kernel[1:4, 1:4], mapped.reshape(3, 3, 1, -1), rtol=1e-5, atol=1e-6)
    assert not np.asarray(kernel).sum(axis=(2, 3))[[0, 0, 4, 4], [0, 4, 0, 4]].any()
    of_map = jax.grad(lambda w: jnp.sum(supernet.specialised(SPACE, w, genome)["stage1_block1"]["depthwise"]["conv"]["kernel"]))(weights)  # fmt: skip  # noqa: E501
    assert bool(jnp.any(of_map.kernels["stage1_block1.kernel"]["5to3"] != 0))
    assert not bool(jnp.any(of_map.kernels["stage1_block2.kernel"]["5to3"] != 0))


def test_sorting_by_importance_changes_the_order_alone(trained):
    weights, stats = trained
    ordered, ordered_stats = supernet.sorted_by_importance(SPACE, weights, stats)
    for block in SPACE.blocks:
        importance = np.abs(ordered.params[block.name]["project"]["conv"]["kernel"]).sum(axis=(0, 1, 3))
        assert (np.diff(importance) <= 0).all()
    largest = jnp.asarray(SPACE.largest)
    np.testing.assert_allclose(under(ordered, ordered_stats, largest), under(weights, stats, largest), atol=2e-6)
