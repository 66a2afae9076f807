"""Clip thresholds from data: how far a format's range should reach.

A *statistic* `(x, axes) → float32` describes values at once, reduced over `axes` (all if None), which are kept. A
*criterion* looks for the multiple of the root mean square that fits a tensor best, for every format at once.

FLIQS sets each threshold to a multiple of the profiled standard deviation and switches the multiple with the format
(§3, "Switchable Clipping"; A.2). The grids are symmetric about zero, so the deviation taken here is that from zero: the
root mean square, which equals the standard deviation for zero-mean tensors and stays meaningful after a ReLU.
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
    """Largest magnitude: nothing is clipped."""
    return jnp.max(jnp.abs(x), axis=axes, keepdims=axes is not None)


def root_mean_square(x: jax.Array, axes: Axes = None) -> jax.Array:
    """Root mean square, of which `FormatTable.clip_multiple` is a multiple."""
    return jnp.sqrt(jnp.mean(jnp.square(x), axis=axes, keepdims=axes is not None))


class RunningAverage(NamedTuple):
    """An average over batches: `value` float32, `batches` int32."""

    value: jax.Array
    batches: jax.Array

    def update(self, value: jax.Array, momentum: float = MOMENTUM) -> "RunningAverage":
        """With another batch's value: an average of all batches at first, later an exponential one."""
        kept = jnp.minimum(self.batches / (self.batches + 1), momentum)
        return RunningAverage(kept * self.value + (1 - kept) * value, self.batches + 1)


_BINS = 2048
_CANDIDATE_BINS = np.unique(np.geomspace(4, _BINS, 240).astype(int))


class Histogram(NamedTuple):
    """Counts of magnitudes in even bins from 0 to 2^exponent, the smallest power of two above them.

    Attributes:
      counts: float32[2048].
      exponent: int32.
    """

    counts: jax.Array
    exponent: jax.Array

    @classmethod
    def of(cls, x: jax.Array) -> "Histogram":
        """That of the values of `x`; zeros, which every format holds exactly, infinities and NaN are passed over."""
        magnitudes = jnp.abs(x).ravel()
        counted = jnp.isfinite(magnitudes) & (magnitudes > 0)
        magnitudes = jnp.where(counted, magnitudes, 0.0)
        _, largest = jnp.frexp(jnp.max(magnitudes))
        exponent = jnp.maximum(largest, -100)
        bins = (magnitudes * jnp.ldexp(jnp.float32(_BINS), -exponent)).astype(jnp.int32)
        counts = jnp.zeros(_BINS, jnp.int32).at[bins].add(counted.astype(jnp.int32))
        return cls(counts.astype(jnp.float32), exponent)

    @property
    def width(self) -> jax.Array:
        """float32, the width of a bin."""
        return jnp.ldexp(jnp.float32(1 / _BINS), self.exponent)


def divergence(seen: Histogram, row: FormatTable, clip_bins: jax.Array) -> jax.Array:
    """Kullback-Leibler divergence of what the codes tell about the distribution from the distribution itself (APQ, §4).

    What lies beyond the threshold counts as lying at it. The codes tell how many values each of them stands for, and
    that those lie evenly over the bins of its interval that are not empty (Migacz, 8-bit Inference with TensorRT,
    2017). A threshold with fewer bins than the format has codes tells nothing, and counts as infinite.
    """
    index = jnp.arange(_BINS)
    inside = index < clip_bins
    occupied = inside & (seen.counts > 0)
    codes = gradients.straight_through((index + 0.5) * seen.width, row, clip_bins * seen.width)
    interval = jnp.cumsum(jnp.diff(codes, prepend=codes[:1]) != 0)

    def per_interval(values: jax.Array) -> jax.Array:
        return jax.ops.segment_sum(values, interval, num_segments=_BINS)[interval]

    told = per_interval(jnp.where(occupied, seen.counts, 0.0)) / jnp.maximum(per_interval(occupied.astype(float)), 1)
    last = jnp.max(jnp.where(occupied, index, 0))
    true = jnp.where(occupied, seen.counts, 0.0).at[last].add(jnp.sum(jnp.where(inside, 0.0, seen.counts)))
    p = true / jnp.maximum(jnp.sum(true), 1)
    q = told / jnp.maximum(jnp.sum(jnp.where(occupied, told, 0.0)), 1)
    terms = jnp.where(occupied, p * jnp.log(jnp.where(occupied, p, 1.0) / jnp.where(occupied, q, 1.0)), 0.0)
    code_bits = jnp.minimum(row.bits - (row.lowest < 0), 10)
    return jnp.where(clip_bins >= 1 << code_bits, jnp.sum(terms), jnp.inf)


_CANDIDATE_MULTIPLES = (32.0 ** (np.arange(-80, 241) / 200)).astype(np.float32)  # ¼ to 64


def clipped_error(x: jax.Array, row: FormatTable, multiple: jax.Array) -> jax.Array:
    """Mean squared error of quantising `x` with the clip threshold `multiple` × its root mean square."""
    return jnp.mean(jnp.square(gradients.straight_through(x, row, multiple * root_mean_square(x)) - x))


def best_multiples(
    x: jax.Array, table: FormatTable, candidates: jax.typing.ArrayLike = _CANDIDATE_MULTIPLES
) -> jax.Array:
    """The clip multiple of least mean squared error on `x` for every format of `table`.

    Returns:
      float32[K].
    """
    candidates = jnp.asarray(candidates)

    def best(row: FormatTable) -> jax.Array:
        errors = jax.lax.map(lambda multiple: clipped_error(x, row, multiple), candidates)
        return candidates[jnp.argmin(errors)]

    return jax.lax.map(best, table)


def least_divergent_multiples(x: jax.Array, table: FormatTable) -> jax.Array:
    """The clip multiple of least divergence on `x` (see `divergence`) for every format of `table`.

    Meant for formats of up to about 8 bits: the histogram tells no more codes apart.

    Returns:
      float32[K]; 0 where `x` holds nothing but zeros.
    """
    seen = Histogram.of(x)
    candidates = jnp.asarray(_CANDIDATE_BINS)

    def least(row: FormatTable) -> jax.Array:
        losses = jax.vmap(lambda bins: divergence(seen, row, bins))(candidates)
        return jnp.where(jnp.sum(seen.counts) > 0, candidates[jnp.argmin(losses)] * seen.width, 0.0)

    return jax.lax.map(least, table) / jnp.maximum(root_mean_square(x), 1e-30)


Criterion = Callable[[jax.Array, FormatTable], jax.Array]
CRITERIA: dict[str, Criterion] = {"profiled": best_multiples, "least_divergence": least_divergent_multiples}
"""By the name that `config.clip.source` gives them."""
