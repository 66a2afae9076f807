"""What each layer loses under each format when it alone is quantised: no training, a few batches.

The cheap answer to which layers need more bits, and the usual input to the assignments in `assignment`; what it cannot
see is how layers act together, and what training would mend.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from aqt_like import format_state as format_state_lib
from aqt_like import layers
from fliqs_jax import models
from fliqs_jax.search import Batch, Search, SearchState


class Sensitivity(NamedTuple):
    """Measured on N examples, for L layers and K formats.

    Attributes:
      accuracy: of the float network, 0 to 1.
      accuracy_drop: float64[L, K], by how much it falls.
      noise_to_signal: float64[L, K], power of the change of the logits over that of the logits about their mean.
    """

    accuracy: float
    accuracy_drop: np.ndarray
    noise_to_signal: np.ndarray

    @property
    def signal_to_noise_db(self) -> np.ndarray:
        """float64[L, K], in decibels; infinite where nothing changes."""
        with np.errstate(divide="ignore"):
            return -10 * np.log10(self.noise_to_signal)


class _Sums(NamedTuple):
    """Over examples: of correct predictions and of squares."""

    correct: jax.Array
    correct_quantized: jax.Array
    signal: jax.Array
    noise: jax.Array


def make_measure(search: Search) -> Callable[[SearchState, Batch], _Sums]:
    """A function `(state, batch) → sums`; one compiled loop over layers and formats."""
    count, formats = len(search.paths), search.bank.signed.bits.shape[0]
    inference = models.mode(search.model, train=False)

    def measure(state: SearchState, batch: Batch) -> _Sums:
        profile = layers.stacked_calibration(search.paths, state.calibration)

        def logits(choice: jax.Array, quantized: jax.Array) -> jax.Array:
            rows = format_state_lib.format_state(
                search.paths, search.bank, state.clip_multiples, choice, profile, quantized, quantize_weights=quantized
            )
            variables = {"params": state.params, "batch_stats": state.batch_stats, "formats": rows}
            return layers.apply_quantized(
                search.model, variables, batch["image"], quantizer=search.quantizer, **inference
            )

        def correct(predicted: jax.Array) -> jax.Array:
            return jnp.sum(jnp.argmax(predicted, -1) == batch["label"])

        real = (batch["label"] >= 0)[:, None]  # padding has the label −1
        reference = logits(jnp.zeros(count, jnp.int32), jnp.zeros(count, bool))
        centred = reference - jnp.mean(reference, axis=-1, keepdims=True)

        def one(layer_and_format: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            layer, fmt = layer_and_format
            changed = logits(jnp.full(count, fmt), jnp.arange(count) == layer)
            return correct(changed), jnp.sum(jnp.square(changed - reference) * real)

        grid = jnp.meshgrid(jnp.arange(count), jnp.arange(formats), indexing="ij")
        found = jax.lax.map(one, tuple(axis.ravel() for axis in grid))
        correct_quantized, noise = (leaf.reshape(count, formats) for leaf in found)
        return _Sums(correct(reference), correct_quantized, jnp.sum(jnp.square(centred) * real), noise)

    return measure


def measure_over(search: Search, state: SearchState, batches: Iterable[Any]) -> Sensitivity:
    """The sensitivity over all `batches`, whose leaves may be NumPy arrays.

    Raises:
      ValueError: there are none.
    """
    measure = jax.jit(make_measure(search))
    total, examples = None, 0
    for batch in batches:
        sums = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), measure(state, batch))
        total = sums if total is None else jax.tree.map(np.add, total, sums)
        examples += int(np.sum(np.asarray(batch["label"]) >= 0))
    if total is None:
        raise ValueError("no batches to measure the sensitivity on")
    return Sensitivity(
        accuracy=float(total.correct) / examples,
        accuracy_drop=(total.correct - total.correct_quantized) / examples,
        noise_to_signal=total.noise / total.signal,
    )
