"""The mesh of devices that a run is spread over: the same search state on each, an equal part of each batch."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def data_mesh() -> Mesh:
    """One mesh axis, `"data"`, over all devices."""
    return jax.make_mesh((len(jax.devices()),), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device: all of the search state, so that all devices train under the same genome."""
    return NamedSharding(mesh, PartitionSpec())


def split_batch(mesh: Mesh) -> NamedSharding:
    """An equal part of the batch axis on each device."""
    return NamedSharding(mesh, PartitionSpec("data"))


def place_batch(batch: dict[str, np.ndarray], sharding: NamedSharding) -> dict[str, jax.Array]:
    """A host batch, equal on every process, as arrays of which each device holds its part."""
    return {
        name: jax.make_array_from_callback(array.shape, sharding, lambda index, array=array: array[index])
        for name, array in batch.items()
    }


def compile_step(step: Callable, mesh: Mesh, state: Any, *batches: dict[str, jax.ShapeDtypeStruct]) -> Callable:
    """Compiles `step(state, *batches) -> (state, metrics)`, `state` donated, once and for all.

    Arguments are given by shapes and types. The result cannot compile again: other shapes are an error.
    """
    whole, parts = replicated(mesh), split_batch(mesh)
    jitted = jax.jit(
        step, donate_argnums=0, in_shardings=(whole, *(parts for _ in batches)), out_shardings=(whole, whole)
    )
    return jitted.lower(state, *batches).compile()
