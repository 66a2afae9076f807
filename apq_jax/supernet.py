"""The once-for-all network: one set of weights that contains every network of a space (APQ, §3.1).

It is the largest network of the space, and a subnetwork is a function of its weights: with the weights that
`specialised` returns for a genome, the largest network computes the outputs of the smaller one. A channel is removed by
zeroing its kernels and normalisation, a block by zeroing its branch beside the shortcut. A smaller kernel is the centre
of the next larger one, transformed by a learned matrix and padded with zeros. The genome is therefore traced, and one
compiled step serves all networks. `cut_out` extracts the smaller network itself.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from apq_jax.architectures import ArchitectureSpace
from apq_jax.block_network import BlockNetwork, network

Params = Any  # a tree of arrays


class Weights(NamedTuple):
    """The trained weights of the once-for-all network.

    Attributes:
      params: parameters of the largest network.
      kernel_maps: by block, then by name such as `"7to5"`: float32[25, 25], from the centre of a 7×7 to a 5×5 kernel.
    """

    params: Params
    kernel_maps: dict[str, dict[str, jax.Array]]


def init(space: ArchitectureSpace, full: BlockNetwork, key: jax.Array) -> tuple[Weights, Params]:
    """Initial weights and batch statistics of the largest network, `full`."""
    example = jnp.zeros((1, space.image, space.image, space.image_channels))
    variables = full.init(key, example, train=False)
    maps = {
        block.name: {f"{large}to{small}": jnp.eye(small**2) for large, small in _kernel_steps(space)}
        for block in space.blocks
    }
    return Weights(variables["params"], maps), variables["batch_stats"]


def _kernel_steps(space: ArchitectureSpace) -> list[tuple[int, int]]:
    """Pairs of a kernel size and the next smaller one, the largest first."""
    descending = space.kernels[::-1]
    return list(itertools.pairwise(descending))


def _inner(kernel: jax.Array, size: int) -> jax.Array:
    """The centre of a kernel, float32[K, K, ...] → float32[size, size, ...]."""
    edge = (kernel.shape[0] - size) // 2
    return kernel[edge : edge + size, edge : edge + size]


def _kernels(space: ArchitectureSpace, kernel: jax.Array, maps: dict[str, jax.Array]) -> list[jax.Array]:
    """A depthwise kernel, float32[K, K, 1, C], in each size of the space, ascending."""
    kernels = [kernel]
    for large, small in _kernel_steps(space):
        inner = _inner(kernels[0], small)
        mapped = maps[f"{large}to{small}"] @ inner.reshape(small**2, -1)
        kernels.insert(0, mapped.reshape(inner.shape))
    return kernels


def _padded(kernel: jax.Array, size: int) -> jax.Array:
    edge = (size - kernel.shape[0]) // 2
    return jnp.pad(kernel, [(edge, edge)] * 2 + [(0, 0)] * 2)


def specialised(space: ArchitectureSpace, weights: Weights, genome: jax.Array) -> Params:
    """Parameters with which the largest network computes the network of a genome, int32[D], which may be traced."""
    params = dict(weights.params)
    options = {name: space.options(genome, name) for name in ("kernel", "channels")}
    active = space.active(genome)
    for number, block in enumerate(space.blocks):
        params[block.name] = _specialised_block(
            space,
            weights.params[block.name],
            weights.kernel_maps[block.name],
            kernel=options["kernel"][number],
            channels=jnp.asarray(block.channels)[options["channels"][number]],
            active=active[number],
        )
    return params


def _specialised_block(
    space: ArchitectureSpace,
    params: Params,
    maps: dict[str, jax.Array],
    *,
    kernel: jax.Array,
    channels: jax.Array,
    active: jax.Array,
) -> Params:
    expand, depthwise, project = (params[name] for name in ("expand", "depthwise", "project"))
    present = (jnp.arange(expand["norm"]["scale"].shape[0]) < channels).astype(jnp.float32)
    largest = space.kernels[-1]
    kernels = [_padded(k, largest) for k in _kernels(space, depthwise["conv"]["kernel"], maps)]
    chosen = jnp.take(jnp.stack(kernels), kernel, axis=0)

    def scaled(norm: Params, factor: jax.Array) -> Params:
        return {name: value * factor for name, value in norm.items()}

    return {
        "expand": {"conv": {"kernel": expand["conv"]["kernel"] * present}, "norm": scaled(expand["norm"], present)},
        "depthwise": {"conv": {"kernel": chosen * present}, "norm": scaled(depthwise["norm"], present)},
        "project": {
            "conv": {"kernel": project["conv"]["kernel"] * present[:, None]},
            "norm": scaled(project["norm"], active.astype(jnp.float32)),
        },
    }


def cut_out(
    space: ArchitectureSpace, weights: Weights, batch_stats: Params, genome: np.ndarray
) -> tuple[BlockNetwork, dict[str, Params]]:
    """The network that a genome, int32[D], describes, with its variables; its outputs equal those of `specialised`."""
    smaller = network(space, genome)
    shapes = {shape.name: shape for shape in smaller.blocks}
    params, stats = dict(weights.params), dict(batch_stats)
    for block in space.blocks:
        largest, largest_stats = params.pop(block.name), stats.pop(block.name)
        if block.name not in shapes:
            continue
        shape = shapes[block.name]
        inside = slice(0, shape.inside)
        kernels = _kernels(space, largest["depthwise"]["conv"]["kernel"], weights.kernel_maps[block.name])
        params[block.name] = {
            "expand": _sliced(largest["expand"], largest["expand"]["conv"]["kernel"][..., inside], inside),
            "depthwise": _sliced(largest["depthwise"], kernels[space.kernels.index(shape.kernel)][..., inside], inside),
            "project": _sliced(largest["project"], largest["project"]["conv"]["kernel"][:, :, inside], slice(None)),
        }
        stats[block.name] = {
            layer: {"norm": {name: value[part] for name, value in largest_stats[layer]["norm"].items()}}
            for layer, part in (("expand", inside), ("depthwise", inside), ("project", slice(None)))
        }
    return smaller, {"params": params, "batch_stats": stats}


def _sliced(layer: Params, kernel: jax.Array, channels: Any) -> Params:
    return {"conv": {"kernel": kernel}, "norm": {name: value[channels] for name, value in layer["norm"].items()}}


def sorted_by_importance(space: ArchitectureSpace, weights: Weights, batch_stats: Params) -> tuple[Weights, Params]:
    """The same network with the expanded channels of each block sorted by descending importance.

    Removing the last channels then removes the least important ones. The importance of a channel is the L1 norm of its
    weights in the projection (Cai et al., Once-for-All, 2020).
    """
    params, stats = dict(weights.params), dict(batch_stats)
    for block in space.blocks:
        layers, layer_stats = params[block.name], stats[block.name]
        order = jnp.argsort(-jnp.sum(jnp.abs(layers["project"]["conv"]["kernel"]), axis=(0, 1, 3)))
        params[block.name] = {
            "expand": _sliced(layers["expand"], layers["expand"]["conv"]["kernel"][..., order], order),
            "depthwise": _sliced(layers["depthwise"], layers["depthwise"]["conv"]["kernel"][..., order], order),
            "project": {**layers["project"], "conv": {"kernel": layers["project"]["conv"]["kernel"][:, :, order]}},
        }
        stats[block.name] = {
            **layer_stats,
            **{
                layer: {"norm": {name: value[order] for name, value in layer_stats[layer]["norm"].items()}}
                for layer in ("expand", "depthwise")
            },
        }
    return weights._replace(params=params), stats


def layer_paths(space: ArchitectureSpace) -> Sequence[str]:
    """Paths of the layers of the largest network, in the order in which they run."""
    inside = [f"{block.name}/{layer}/conv" for block in space.blocks for layer in ("expand", "depthwise", "project")]
    return ("stem/conv", "first_depthwise/conv", "first_project/conv", *inside, "head/conv", "classifier")
