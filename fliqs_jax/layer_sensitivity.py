"""Layer sensitivity: quality drop and noise of the logits when a single layer is quantised, on a few batches.

It shows at low cost which layers need more bits, and is the input of the methods in `assignment`. It ignores how the
errors of several layers interact, and what training would recover.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from aqt_like import format_choice, interception
from fliqs_jax import models
from fliqs_jax.losses import Batch
from fliqs_jax.search import Search, SearchState


class Sensitivity(NamedTuple):
    """Sensitivity of L layers to K formats.

    Attributes:
      quality: quality of the float network.
      quality_drop: float64[L, K], decrease of the quality when only that layer is quantised.
      noise_to_signal: float64[L, K], power of the change of the logits over that of the centred float logits.
    """

    quality: float
    quality_drop: np.ndarray
    noise_to_signal: np.ndarray

    @property
    def signal_to_noise_db(self) -> np.ndarray:
        """Signal-to-noise ratio of the logits in decibels, float64[L, K]; infinite where the logits do not change."""
        with np.errstate(divide="ignore"):
            return -10 * np.log10(self.noise_to_signal)


class _Sums(NamedTuple):
    """Sums over examples.

    Attributes:
      statistics: statistics of the quality of the float network.
      statistics_quantized: the same with one layer quantised, leaves `[L, K, …]`.
      signal: float32, squares of the centred float logits.
      noise: float32[L, K], squares of the change of the logits.
    """

    statistics: Any
    statistics_quantized: Any
    signal: jax.Array
    noise: jax.Array


def make_measure(search: Search) -> Callable[[SearchState, Batch], _Sums]:
    """Makes `(state, batch) → sums`, which loops over all layers and formats inside one compiled function."""
    count, formats = len(search.paths), search.bank.signed.bits.shape[0]
    inference = models.mode(search.model, train=False)

    def measure(state: SearchState, batch: Batch) -> _Sums:
        profile = interception.stacked_calibration(search.paths, state.calibration)

        def logits(choice: jax.Array, quantized: jax.Array) -> jax.Array:
            rows = format_choice.format_state(
                search.paths, search.bank, state.clip_multiples, choice, profile, quantized, quantize_weights=quantized
            )
            variables = {"params": state.params, "batch_stats": state.batch_stats, "formats": rows}
            return interception.apply_quantized(
                search.model, variables, batch["input"], quantizer=search.quantizer, **inference
            )

        reference = logits(jnp.zeros(count, jnp.int32), jnp.zeros(count, bool))
        # Padding has the label −1. A softmax ignores an offset of all logits, so they are centred over classes; a
        # single logit is centred over the batch.
        real = (batch["label"] >= 0).reshape(*batch["label"].shape, *[1] * (reference.ndim - batch["label"].ndim))
        several = reference.shape[-1] > 1
        centred = reference - jnp.mean(reference, axis=-1 if several else 0, keepdims=True)

        def quantize_one_layer(layer_and_format: tuple[jax.Array, jax.Array]) -> tuple[Any, jax.Array]:
            layer, fmt = layer_and_format
            changed = logits(jnp.full(count, fmt), jnp.arange(count) == layer)
            return search.quality.statistics(changed, batch), jnp.sum(jnp.square(changed - reference) * real)

        grid = jnp.meshgrid(jnp.arange(count), jnp.arange(formats), indexing="ij")
        sums = jax.lax.map(quantize_one_layer, tuple(axis.ravel() for axis in grid))
        statistics, noise = jax.tree.map(lambda leaf: leaf.reshape(count, formats, *leaf.shape[1:]), sums)
        reference_statistics = search.quality.statistics(reference, batch)
        return _Sums(reference_statistics, statistics, jnp.sum(jnp.square(centred) * real), noise)

    return measure


def measure_over(search: Search, state: SearchState, batches: Iterable[Any]) -> Sensitivity:
    """Sensitivity over all `batches`, whose leaves may be NumPy arrays.

    Raises:
      ValueError: there are no batches.
    """
    measure = jax.jit(make_measure(search))
    total = None
    for batch in batches:
        sums = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), measure(state, batch))
        total = sums if total is None else jax.tree.map(np.add, total, sums)
    if total is None:
        raise ValueError("no batches to measure the sensitivity on")
    quality = float(search.quality.value(total.statistics))
    quantized = jax.vmap(jax.vmap(search.quality.value))(total.statistics_quantized)
    return Sensitivity(
        quality=quality,
        quality_drop=quality - np.asarray(quantized, np.float64),
        noise_to_signal=total.noise / total.signal,
    )
