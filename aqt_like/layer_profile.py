"""Layer profiles: what the inputs of layers were like in the batches seen, which clip thresholds come from."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax import lax

from aqt_like import calibration
from aqt_like.layer_calls import by_layer, split_repetition
from aqt_like.lifting import loop_shapes


class InputStatistics(NamedTuple):
    """Statistics of one batch of a layer's input, as one call of the layer saw it.

    Loops stack them (see `lifting`): repetitions of the layer are leading axes, runs that share parameters trailing.

    Attributes:
      mean_square: float32, mean of x².
      smallest: float32, smallest x.
      boundary: float32[0], an axis of size 0 between the axes of repetitions and those of runs.
    """

    mean_square: jax.Array
    smallest: jax.Array
    boundary: jax.Array

    @classmethod
    def of(cls, x: jax.Array, profiling: jax.Array | bool = True, share: jax.Array | None = None) -> "InputStatistics":
        """The statistics of all values of `x`, any type, in float32; computed only while `profiling`, a bool scalar.

        With a `share`, float32 scalar, the mean is that over so many of the values; the others are zeros.
        """

        def measured(x: jax.Array) -> tuple[jax.Array, jax.Array]:
            values = x.astype(jnp.float32)
            return jnp.mean(jnp.square(values)), jnp.min(values, initial=jnp.inf)

        def skipped(x: jax.Array) -> tuple[jax.Array, jax.Array]:
            del x
            return jnp.zeros(()), jnp.zeros(())

        x = lax.stop_gradient(x)
        mean_square, smallest = measured(x) if profiling is True else lax.cond(profiling, measured, skipped, x)
        return cls(mean_square if share is None else mean_square / share, smallest, jnp.zeros((0,)))

    def over_runs(self) -> tuple[jax.Array, jax.Array]:
        """Mean square and smallest value over all runs, float32 of the shape of the repetitions."""
        repetitions, _ = loop_shapes(self.boundary.shape)
        runs = tuple(range(len(repetitions), self.mean_square.ndim))
        return jnp.mean(self.mean_square, runs), jnp.min(self.smallest, runs)


class LayerCalibration(NamedTuple):
    """Profile of a layer's input: scalars, or `[L]` when stacked over layers.

    Attributes:
      mean_square: float32, running average of the batch mean of x².
      smallest: float32, smallest value in all batches; if not negative, the input can use an unsigned format.
      batches: int32, number of batches profiled. Batches with a NaN or infinite value are passed over.
    """

    mean_square: jax.Array
    smallest: jax.Array
    batches: jax.Array

    @classmethod
    def empty(cls) -> "LayerCalibration":
        """The profile before the first batch."""
        return cls(jnp.zeros(()), jnp.full((), jnp.inf, jnp.float32), jnp.zeros((), jnp.int32))

    def update(self, x: jax.Array) -> "LayerCalibration":
        """The profile after another batch `x`: a plain mean over batches at first, later an exponential moving average.

        All values count, in float32 whatever their type. A batch with a NaN or infinite value is passed over.
        """
        return self.after([InputStatistics.of(x)])

    def after(self, calls: Sequence[InputStatistics], momentum: float = calibration.MOMENTUM) -> "LayerCalibration":
        """The profile after another batch, of which each call of the layer has statistics; calls count alike."""
        squares, lowest = (jnp.stack(values) for values in zip(*(call.over_runs() for call in calls), strict=True))
        mean_square, smallest = jnp.mean(squares, 0), jnp.min(lowest, 0)
        average = calibration.RunningAverage(self.mean_square, self.batches).update(mean_square, momentum)
        seen = LayerCalibration(average.value, jnp.minimum(self.smallest, smallest), average.batches)
        usable = jnp.isfinite(mean_square) & jnp.isfinite(smallest)
        return jax.tree.map(lambda new, old: jnp.where(usable, new, old), seen, self)

    @property
    def root_mean_square(self) -> jax.Array:
        """The root mean square of the input, the unit of clip multiples."""
        return jnp.sqrt(self.mean_square)

    @property
    def never_negative(self) -> jax.Array:
        """Whether the input was never negative, so that an unsigned format can hold it: bool."""
        return (self.batches > 0) & (self.smallest >= 0)

    @property
    def tells_a_threshold(self) -> jax.Array:
        """Whether the input was profiled and was not all zeros, so that there is a clip threshold: bool."""
        return (self.batches > 0) & (self.mean_square > 0)


def empty_calibration(paths: Sequence[str]) -> dict[str, Any]:
    """The `"calibration"` collection before the first batch."""
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf] * len(paths)), LayerCalibration.empty())
    return by_layer(paths, stacked, "input")


def stacked_calibration(paths: Sequence[str], collection: Mapping[str, Any]) -> LayerCalibration:
    """The profiles of the layers at `paths` in a `"calibration"` collection, stacked to leaves `[L]`.

    Raises:
      ValueError: the collection has no such layer, or no such repetition of it.
    """
    flat: dict[tuple[str, ...], Any] = traverse_util.flatten_dict(collection)

    def profile(path: str) -> LayerCalibration:
        layer, repetition = split_repetition(path)
        entry = flat.get((*layer.split("/"), "input"))
        if entry is None:
            known = ", ".join("/".join(key[:-1]) for key in flat)
            raise ValueError(f"{path} is not among the profiled layers: {known}")
        shape = jnp.shape(entry.mean_square)
        if len(repetition) != len(shape) or any(i >= n for i, n in zip(repetition, shape, strict=True)):
            raise ValueError(f"{path}: the profile of {layer} is that of {shape or 'no'} repetitions in a loop")
        return jax.tree.map(lambda leaf: leaf[repetition], entry)

    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(profile, paths))


class ProfileError(ValueError):
    """Raised for inputs that were never profiled; the message names the layers."""


def check_profile(paths: Sequence[str], profile: LayerCalibration, *, batches: int | None = None) -> list[str]:
    """Checks profiles before inputs are quantised, outside of jit, and tells what is doubtful about them.

    Args:
      paths: path of each layer.
      profile: their profiles, leaves `[L]`.
      batches: number of batches that were to be profiled, if known.

    Returns:
      A line for each doubt: batches passed over, and inputs of nothing but zeros.

    Raises:
      ProfileError: a layer was never profiled.
    """
    mean_square, profiled = (np.asarray(leaf) for leaf in (profile.mean_square, profile.batches))

    def named(chosen: np.ndarray) -> str:
        found = [path for path, is_chosen in zip(paths, chosen, strict=True) if is_chosen]
        return ", ".join(found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")

    if (never := profiled == 0).any():
        raise ProfileError(
            f"the input of {named(never)} was never profiled, or only on batches with NaN or infinite values: it "
            "has no clip threshold. Expected a profile, or a rule 'PATH: ignore' that leaves the layer in float"
        )
    doubts = []
    if batches is not None and (passed := profiled < batches).any():
        count = batches - int(profiled.min())
        doubts.append(f"NaN or infinite inputs of {named(passed)}: up to {count} of {batches} batches were passed over")
    if (zeros := mean_square == 0).any():
        doubts.append(f"the input of {named(zeros)} was all zeros, or too small to square: it stays in float")
    return doubts


def call_ratio(calls: Sequence[InputStatistics]) -> float:
    """The ratio of the largest root mean square among the calls of a layer to the smallest; 1 if one is not finite."""
    squares = np.stack([np.asarray(call.over_runs()[0]) for call in calls])
    if not np.isfinite(squares).all():
        return 1.0
    return float(np.sqrt((squares.max(0) / np.maximum(squares.min(0), np.finfo(np.float32).tiny)).max()))
