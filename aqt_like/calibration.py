"""Calibration: clip thresholds computed from data.

A *statistic* `(x, axes) → float32` reduces a tensor of any type over `axes`, which stay as axes of size 1; over all
axes, to a scalar, if None. A *criterion* `(x, formats) → float32[K]` finds the best clip multiple of each format for a
tensor. A clip multiple is a clip threshold in units of the tensor's root mean square.

FLIQS sets each threshold to a multiple of the profiled standard deviation and switches the multiple with the format
(FLIQS, §3 "Switchable Clipping" and A.2). The grids are symmetric about zero, so the deviation from zero is used here:
the root mean square, which equals the standard deviation for zero-mean tensors and remains meaningful after a ReLU.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from aqt_like import gradients
from aqt_like.formats import FormatTable

Axes = tuple[int, ...] | None
Statistic = Callable[[jax.Array, Axes], jax.Array]

MOMENTUM = 0.95


def absolute_max(x: jax.Array, axes: Axes = None) -> jax.Array:
    """The largest magnitude of `x`; as a clip threshold it clips nothing."""
    return jnp.max(jnp.abs(jnp.float32(x)), axis=axes, keepdims=axes is not None)


def root_mean_square(x: jax.Array, axes: Axes = None) -> jax.Array:
    """The root mean square of `x`, the unit of `FormatTable.clip_multiple`."""
    return jnp.sqrt(jnp.mean(jnp.square(jnp.float32(x)), axis=axes, keepdims=axes is not None))


def root_mean_square_of_present(x: jax.Array, axes: Axes = None) -> jax.Array:
    """The root mean square of the values of `x` that are not zero: what elastic networks leave out does not count."""
    present = jnp.sum(x != 0, axis=axes, keepdims=axes is not None)
    return jnp.sqrt(jnp.sum(jnp.square(x), axis=axes, keepdims=axes is not None) / jnp.maximum(present, 1))


class RunningAverage(NamedTuple):
    """An average over batches: its `value`, float32, and the number of `batches`, int32."""

    value: jax.Array
    batches: jax.Array

    def update(self, value: jax.Array, momentum: float = MOMENTUM) -> "RunningAverage":
        """The average after one more batch: the plain mean at first, later an exponential moving average.

        It turns exponential once `batches / (batches + 1)` reaches `momentum`.
        """
        decay = jnp.minimum(self.batches / (self.batches + 1), momentum)
        return RunningAverage(decay * self.value + (1 - decay) * value, self.batches + 1)


_BINS = 2048
_CANDIDATE_BINS = np.unique(np.geomspace(4, _BINS, 240).astype(int))


class Histogram(NamedTuple):
    """Histogram of magnitudes in equal bins from 0 to 2^exponent, the smallest power of two above all of them.

    Attributes:
      counts: float32[2048], number of values in each bin.
      exponent: int32 scalar.
    """

    counts: jax.Array
    exponent: jax.Array

    @classmethod
    def from_values(cls, x: jax.Array) -> "Histogram":
        """The histogram of `x`, any shape; zeros (exact in every format), infinities and NaN are not counted."""
        magnitudes = jnp.abs(jnp.float32(x)).ravel()
        counted = jnp.isfinite(magnitudes) & (magnitudes > 0)
        magnitudes = jnp.where(counted, magnitudes, 0.0)
        _, largest = jnp.frexp(jnp.max(magnitudes))
        exponent = jnp.maximum(largest, -100)
        bins = (magnitudes * jnp.ldexp(jnp.float32(_BINS), -exponent)).astype(jnp.int32)
        counts = jnp.zeros(_BINS, jnp.int32).at[bins].add(counted.astype(jnp.int32))
        return cls(counts.astype(jnp.float32), exponent)

    @property
    def width(self) -> jax.Array:
        """The width of a bin, float32 scalar."""
        return jnp.ldexp(jnp.float32(1 / _BINS), self.exponent)


def divergence(histogram: Histogram, row: FormatTable, clip_bins: jax.Array) -> jax.Array:
    """Kullback-Leibler divergence D(w ‖ w′) of quantised values w′ from the original values w (APQ, §4).

    Both distributions are histograms: that of w has everything beyond the threshold in its last occupied bin; that of
    w′ spreads the count of each code evenly over the occupied bins that round to it (Migacz, 8-bit Inference with
    TensorRT, 2017).

    Args:
      histogram: histogram of w.
      row: the format, as scalars.
      clip_bins: clip threshold in bins, int32 scalar.

    Returns:
      float32 scalar; infinite where the threshold spans fewer bins than the format has magnitudes, or a single occupied
      one of several: a bin alone agrees with itself, however much is clipped to it.
    """
    index = jnp.arange(_BINS)
    inside = index < clip_bins
    counts = histogram.counts
    occupied = inside & (counts > 0)
    codes, _ = gradients.straight_through.codes((index + 0.5) * histogram.width, row, clip_bins * histogram.width)
    interval = jnp.cumsum(jnp.diff(codes, prepend=codes[:1]) != 0)

    def per_interval(values: jax.Array) -> jax.Array:
        return jax.ops.segment_sum(values, interval, num_segments=_BINS)[interval]

    interval_counts = per_interval(jnp.where(occupied, counts, 0.0))
    reconstructed = interval_counts / jnp.maximum(per_interval(occupied.astype(float)), 1)
    last = jnp.max(jnp.where(occupied, index, 0))
    reference = jnp.where(occupied, counts, 0.0).at[last].add(jnp.sum(jnp.where(inside, 0.0, counts)))
    p = reference / jnp.maximum(jnp.sum(reference), 1)
    q = reconstructed / jnp.maximum(jnp.sum(jnp.where(occupied, reconstructed, 0.0)), 1)
    terms = jnp.where(occupied, p * jnp.log(jnp.where(occupied, p, 1.0) / jnp.where(occupied, q, 1.0)), 0.0)
    code_bits = jnp.minimum(row.bits - (row.lowest < 0), 10)
    tells = (jnp.sum(occupied) > 1) | (jnp.sum(counts > 0) == 1)
    return jnp.where((clip_bins >= 1 << code_bits) & tells, jnp.sum(terms), jnp.inf)


_CANDIDATE_MULTIPLES = (32.0 ** (np.arange(-80, 241) / 200)).astype(np.float32)  # ¼ to 64


def clipped_error(x: jax.Array, row: FormatTable, multiple: jax.Array) -> jax.Array:
    """Mean squared error of quantising `x` with the clip threshold `multiple` × its root mean square: a scalar."""
    return jnp.mean(jnp.square(gradients.straight_through(x, row, multiple * root_mean_square(x)) - x))


def best_multiples(
    x: jax.Array, table: FormatTable, candidates: jax.typing.ArrayLike = _CANDIDATE_MULTIPLES
) -> jax.Array:
    """The clip multiple with the least mean squared error on `x`, for each format of `table`: float32[K].

    Implements "switchable clipping" (FLIQS, §3) for a sample `x`, any shape; `candidates` are the multiples to try.
    """
    x, candidates = jnp.float32(x), jnp.asarray(candidates)

    def best(row: FormatTable) -> jax.Array:
        errors = jax.lax.map(lambda multiple: clipped_error(x, row, multiple), candidates)
        return candidates[jnp.argmin(errors)]

    return jax.lax.map(best, table)


def least_divergent_multiples(x: jax.Array, table: FormatTable) -> jax.Array:
    """The clip multiple with the least divergence on `x`, for each format of `table`: the `v` of APQ, Eq. 5.

    The histogram resolves formats of up to about 8 bits.

    Returns:
      float32[K]; 0 where `x` is all zeros.
    """
    histogram = Histogram.from_values(x)
    candidates = jnp.asarray(_CANDIDATE_BINS)

    def least(row: FormatTable) -> jax.Array:
        losses = jax.vmap(lambda bins: divergence(histogram, row, bins))(candidates)
        return jnp.where(jnp.sum(histogram.counts) > 0, candidates[jnp.argmin(losses)] * histogram.width, 0.0)

    return jax.lax.map(least, table) / jnp.maximum(root_mean_square(x), 1e-30)


Criterion = Callable[[jax.Array, FormatTable], jax.Array]
CRITERIA: dict[str, Criterion] = {"profiled": best_multiples, "least_divergence": least_divergent_multiples}
"""The criteria by their names in `config.clip.source`."""
