"""The once-for-all network: one set of weights that contains every network of a space (APQ, §3.1).

It is the largest network of a family (`fliqs_jax.models.elastic`), with a genome in the place of options.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from apq_jax.network_space import NetworkSpace
from fliqs_jax.models import elastic
from fliqs_jax.models.elastic import Params, Weights


def init(space: NetworkSpace, key: jax.Array) -> tuple[Weights, Params]:
    """Initial weights and batch statistics of the largest network."""
    family, example = space.family, jnp.zeros((1, *space.example_shape))
    # One program: op by op, each shape of each operation would be compiled by itself.
    return jax.jit(lambda key: elastic.init(family, key, example, train=False))(key)


def specialised(space: NetworkSpace, weights: Weights, genome: jax.Array) -> Params:
    """Parameters with which the largest network computes the network of a genome, int32[D], which may be traced."""
    return elastic.specialised(space.family, weights, elastic.options_of(space.search_space, genome))


def cut_out(
    space: NetworkSpace, weights: Weights, batch_stats: Params, genome: np.ndarray
) -> tuple[nn.Module, dict[str, Params]]:
    """The network that a genome, int32[D], describes, with its variables; its outputs equal those of `specialised`."""
    return elastic.cut_out(space.family, weights, batch_stats, space.family_genome(genome))


def _sliced(layer: Params, kernel: jax.Array, channels: Any) -> Params:
    return {"conv": {"kernel": kernel}, "norm": {name: value[channels] for name, value in layer["norm"].items()}}


def sorted_by_importance(space: NetworkSpace, weights: Weights, batch_stats: Params) -> tuple[Weights, Params]:
    """The same network with the expanded channels of each block sorted by descending importance.

    Removing the last channels then removes the least important ones. The importance of a channel is the L1 norm of its
    weights in the projection (Cai et al., Once-for-All, 2020).
    """
    params, stats = dict(weights.params), dict(batch_stats)
    expansions = [layer.path for layer in space.family.layers if layer.path.endswith("/expand/conv")]
    for block in (path.removesuffix("/expand/conv") for path in expansions):
        layers, layer_stats = params[block], stats[block]
        order = jnp.argsort(-jnp.sum(jnp.abs(layers["project"]["conv"]["kernel"]), axis=(0, 1, 3)))
        params[block] = {
            "expand": _sliced(layers["expand"], layers["expand"]["conv"]["kernel"][..., order], order),
            "depthwise": _sliced(layers["depthwise"], layers["depthwise"]["conv"]["kernel"][..., order], order),
            "project": {**layers["project"], "conv": {"kernel": layers["project"]["conv"]["kernel"][:, :, order]}},
        }
        stats[block] = {
            **layer_stats,
            **{
                layer: {"norm": {name: value[order] for name, value in layer_stats[layer]["norm"].items()}}
                for layer in ("expand", "depthwise")
            },
        }
    return weights._replace(params=params), stats
