"""Recalibration: the batch statistics of a network anew, as plain means over batches, whatever their momentum.

Statistics that were averaged in training lag behind weights and formats. Passes in training mode show the mean and the
variance that each `nn.BatchNorm` computes from a batch, in lifted transforms too. `batch_sums` reads them from one
pass; `recalibrated` averages over passes. Other running state, such as that of `nn.SpectralNorm`, is left alone.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

_COLLECTION = "batch_stats"  # nn.BatchNorm has no other.
_STATISTICS = ("mean", "var")
# Leaves beside the statistics during a pass. There, lifted transforms map them like the statistics.
_SUMS = {"mean": "recalibration_mean", "var": "recalibration_var"}
_CALLS = "recalibration_calls"


class StatisticsError(ValueError):
    """The statistics of a batch are not finite."""


class Sums(NamedTuple):
    """What one `nn.BatchNorm` computed in one pass; all leaves have the shape of its statistics.

    Attributes:
      mean, var: float32, mean and variance of the batch, summed over the calls that update the statistics.
      calls: int32, number of these calls; 0 if the layer uses its running statistics.
    """

    mean: jax.Array | np.ndarray
    var: jax.Array | np.ndarray
    calls: jax.Array | np.ndarray


def batch_sums(update: Callable[[dict[str, Any]], Mapping[str, Any]], variables: Mapping[str, Any]) -> dict[str, Sums]:
    """The statistics that the `nn.BatchNorm` layers compute in one pass; a pure function, to be jitted.

    Args:
      update: `(variables) -> updated`, a pass in training mode: what `model.apply` with `mutable=["batch_stats"]`
        returns beside the output.
      variables: variables of the model.

    Returns:
      Sums by path, as in `stem/norm`; also, with no calls, of other modules that have a `mean` and a `var`.
    """
    stats = _flat(variables)
    owners = [path[:-1] for path in stats if path[-1] == "mean" and (*path[:-1], "var") in stats]
    for owner in owners:
        shape = jnp.shape(stats[(*owner, "mean")])
        stats[(*owner, _CALLS)] = jnp.zeros(shape, jnp.int32)
        for name in _SUMS.values():
            stats[(*owner, name)] = jnp.zeros(shape, jnp.float32)
    with nn.intercept_methods(_add_to_sums):
        updated = _flat(update({**variables, _COLLECTION: traverse_util.unflatten_dict(stats)}))
    names = (_SUMS["mean"], _SUMS["var"], _CALLS)
    return {"/".join(owner): Sums(*(updated[(*owner, name)] for name in names)) for owner in owners}


def _add_to_sums(call: Any, call_args: tuple, call_kwargs: dict, context: nn.module.InterceptorContext) -> Any:
    """Adds the statistics that a call of an `nn.BatchNorm` computes to its sums, and leaves its own ones alone."""
    layer = context.module
    if (
        not isinstance(layer, nn.BatchNorm)
        or context.method_name != "__call__"
        or not layer.has_variable(_COLLECTION, _CALLS)
    ):
        return call(*call_args, **call_kwargs)

    def get(name: str) -> jax.Array:
        return layer.get_variable(_COLLECTION, name)

    def put(name: str, value: jax.Array) -> None:
        layer.put_variable(_COLLECTION, name, value)

    calls, momentum = get(_CALLS), layer.momentum
    old = {name: get(name) for name in _STATISTICS}
    # At momentum 0 the new statistics are those of the batch, unless the old ones are not finite: 0 · inf is NaN.
    finite = {name: jnp.where(jnp.isfinite(value), value, 0) for name, value in old.items()}
    for name, value in finite.items():
        put(name, value)
    object.__setattr__(layer, "momentum", 0.0)  # Modules are frozen.
    try:
        output = call(*call_args, **call_kwargs)
    finally:
        object.__setattr__(layer, "momentum", momentum)
    # A layer in a transform, or one that calls its superclass, is intercepted again inside, where its sums have grown.
    if get(_CALLS) is calls and get("mean") is not finite["mean"]:
        put(_CALLS, calls + 1)
        for name, sums in _SUMS.items():
            put(sums, get(sums) + get(name).astype(jnp.float32))
    for name, value in old.items():
        put(name, value)
    return output


def recalibrated(batch_stats: dict[str, Any], sums: Iterable[Mapping[str, Sums]]) -> dict[str, Any]:
    """Batch statistics that are plain means over batches of each batch's mean and variance.

    A layer that is called several times in a pass gets the mean over all of its calls. A layer that uses its running
    statistics keeps them, and so do all layers if there are no batches. Means are computed in float64 on the host.

    Args:
      batch_stats: the collection before.
      sums: what `batch_sums` returns for each batch.

    Returns:
      The collection with new statistics, of the types and on the devices of the old ones; other leaves are unchanged.

    Raises:
      StatisticsError: a mean or variance of a batch is NaN or infinite; the message names layer and batch.
    """
    of_batches: list[dict[str, Sums]] = [jax.device_get(dict(of_batch)) for of_batch in sums]
    stats = traverse_util.flatten_dict(batch_stats, keep_empty_nodes=True)
    new: dict[tuple[str, ...], np.ndarray] = {}
    for path in of_batches[0] if of_batches else ():
        calls = np.sum([of_batch[path].calls for of_batch in of_batches], axis=0)
        if not calls.any():
            continue
        for name in _STATISTICS:
            values = [getattr(of_batch[path], name) for of_batch in of_batches]
            total = np.sum(values, axis=0, dtype=np.float64)
            if not np.isfinite(total).all():
                number = next(i for i, value in enumerate(values, start=1) if not np.isfinite(value).all())
                raise StatisticsError(
                    f"batch statistics of {path or 'the network'}: the {name} is not finite in recalibration batch "
                    f"{number} (the first is 1): its data or the weights hold NaN, infinite or too large numbers"
                )
            key = (*path.split("/"), name) if path else (name,)
            kept = np.asarray(stats[key])
            new[key] = np.where(calls > 0, total / np.maximum(calls, 1), kept).astype(kept.dtype)
    placed = jax.device_put(new, {key: getattr(stats[key], "sharding", None) for key in new})
    return traverse_util.unflatten_dict({**stats, **placed})


def _flat(variables: Mapping[str, Any]) -> dict[tuple[str, ...], Any]:
    """The batch statistics among variables as a flat dictionary by path."""
    return traverse_util.flatten_dict(variables.get(_COLLECTION, {}))
