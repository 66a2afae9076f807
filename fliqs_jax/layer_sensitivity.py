"""What each layer loses under each format when it alone is quantised: no training, a few batches.

The cheap answer to which layers need more bits, and the usual input to the assignments in `assignment`; what it cannot
see is how layers act together, and what training would mend.
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
    """Measured on N examples, for L layers and K formats.

    Attributes:
      quality: of the float network.
      quality_drop: float64[L, K], by how much it falls.
      noise_to_signal: float64[L, K], power of the change of the logits over that of the logits about their mean.
    """

    quality: float
    quality_drop: np.ndarray
    noise_to_signal: np.ndarray

    @property
    def signal_to_noise_db(self) -> np.ndarray:
        """float64[L, K], in decibels; infinite where nothing changes."""
        with np.errstate(divide="ignore"):
            return -10 * np.log10(self.noise_to_signal)


class _Sums(NamedTuple):
    """Over examples: of the quality's statistics, the second with leading axes L and K, and of squares."""

    statistics: Any
    statistics_quantized: Any
    signal: jax.Array
    noise: jax.Array


def make_measure(search: Search) -> Callable[[SearchState, Batch], _Sums]:
    """A function `(state, batch) → sums`; one compiled loop over layers and formats."""
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
        # Padding has the label −1. What is added to all logits of a softmax says nothing; a single logit has no others.
        real = (batch["label"] >= 0).reshape(*batch["label"].shape, *[1] * (reference.ndim - batch["label"].ndim))
        several = reference.shape[-1] > 1
        centred = reference - jnp.mean(reference, axis=-1 if several else 0, keepdims=True)

        def one(layer_and_format: tuple[jax.Array, jax.Array]) -> tuple[Any, jax.Array]:
            layer, fmt = layer_and_format
            changed = logits(jnp.full(count, fmt), jnp.arange(count) == layer)
            return search.quality.statistics(changed, batch), jnp.sum(jnp.square(changed - reference) * real)

        grid = jnp.meshgrid(jnp.arange(count), jnp.arange(formats), indexing="ij")
        found = jax.lax.map(one, tuple(axis.ravel() for axis in grid))
        statistics, noise = jax.tree.map(lambda leaf: leaf.reshape(count, formats, *leaf.shape[1:]), found)
        reference_statistics = search.quality.statistics(reference, batch)
        return _Sums(reference_statistics, statistics, jnp.sum(jnp.square(centred) * real), noise)

    return measure


def measure_over(search: Search, state: SearchState, batches: Iterable[Any]) -> Sensitivity:
    """The sensitivity over all `batches`, whose leaves may be NumPy arrays.

    Raises:
      ValueError: there are none.
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
