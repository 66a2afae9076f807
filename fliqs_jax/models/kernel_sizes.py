"""Kernels of several sizes in one depthwise layer: insides of the largest (APQ, §3.1), or branches (FLIQS, A.4)."""

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp


class KernelSizes(NamedTuple):
    """How a depthwise layer holds kernels of several sizes beside the largest, which is the layer's own.

    Attributes:
      init: `(key, sizes, channels) → {name: array}`, what is stored for the smaller ones.
      kernels: `(largest float32[K, K, 1, C], stored, sizes) → kernels of all sizes`, ascending.
    """

    init: Callable[[jax.Array, Sequence[int], int], dict[str, jax.Array]]
    kernels: Callable[[jax.Array, dict[str, jax.Array], Sequence[int]], list[jax.Array]]


def padded(kernel: jax.Array, size: int) -> jax.Array:
    """A kernel, float32[k, k, …], with zeros around it: float32[size, size, …]."""
    edge = (size - kernel.shape[0]) // 2
    return jnp.pad(kernel, [(edge, edge)] * 2 + [(0, 0)] * (kernel.ndim - 2))


def _inner(kernel: jax.Array, size: int) -> jax.Array:
    edge = (kernel.shape[0] - size) // 2
    return kernel[edge : edge + size, edge : edge + size]


def _steps(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Pairs of a size and the next smaller one, the largest first."""
    return list(itertools.pairwise(sizes[::-1]))


def _init_maps(key: jax.Array, sizes: Sequence[int], channels: int) -> dict[str, jax.Array]:
    del key, channels
    return {f"{large}to{small}": jnp.eye(small**2) for large, small in _steps(sizes)}


def _mapped_centres(largest: jax.Array, maps: dict[str, jax.Array], sizes: Sequence[int]) -> list[jax.Array]:
    kernels = [largest]
    for large, small in _steps(sizes):
        inner = _inner(kernels[0], small)
        kernels.insert(0, (maps[f"{large}to{small}"] @ inner.reshape(small**2, -1)).reshape(inner.shape))
    return kernels


NESTED = KernelSizes(_init_maps, _mapped_centres)
"""A smaller kernel is the centre of the next larger one under a learnt matrix, float32[25, 25] from 7×7 to 5×5 (Cai et
al., Once-for-All, 2020; APQ, §3.1)."""


def _init_branches(key: jax.Array, sizes: Sequence[int], channels: int) -> dict[str, jax.Array]:
    init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
    return {
        str(size): init(jax.random.fold_in(key, size), (size, size, 1, channels), jnp.float32) for size in sizes[:-1]
    }


def _own_kernels(largest: jax.Array, branches: dict[str, jax.Array], sizes: Sequence[int]) -> list[jax.Array]:
    return [*(branches[str(size)] for size in sizes[:-1]), largest]


BRANCHES = KernelSizes(_init_branches, _own_kernels)
"""Each size has a kernel of its own (FLIQS, A.4: branches)."""
