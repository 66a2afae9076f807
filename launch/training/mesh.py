"""Data parallelism: the search state is replicated over the mesh of devices, each batch is split."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.stages import Compiled


def device_text() -> str:
    """Number and kind of the devices of this process."""
    devices = jax.devices()
    return f"{len(devices)} × {devices[0].device_kind}"


def data_mesh() -> Mesh:
    """Mesh of all devices with one axis, `"data"`."""
    return jax.make_mesh((len(jax.devices()),), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of the search state: replicated, so all devices train with the same genome."""
    return NamedSharding(mesh, PartitionSpec())


def split_batch(mesh: Mesh) -> NamedSharding:
    """Sharding of a batch: each device holds an equal part of the batch axis."""
    return NamedSharding(mesh, PartitionSpec("data"))


def place_batch(batch: dict[str, Any], sharding: NamedSharding) -> dict[str, Any]:
    """Puts a host batch, equal on all processes, on the devices with this sharding."""
    return jax.tree.map(
        lambda array: jax.make_array_from_callback(array.shape, sharding, lambda index: array[index]), batch
    )


def compile_step(step: Callable, mesh: Mesh, state: Any, *batches: dict[str, Any]) -> Compiled:
    """Compiles `step(state, *batches) -> (state, metrics)` ahead of time, with `state` donated.

    `state` and `batches` are shapes and types. Calls of the compiled step with other shapes are errors, never a second
    compilation.
    """
    whole, parts = replicated(mesh), split_batch(mesh)
    jitted = jax.jit(
        step, donate_argnums=0, in_shardings=(whole, *(parts for _ in batches)), out_shardings=(whole, whole)
    )
    return jitted.lower(state, *batches).compile()
