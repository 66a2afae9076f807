"""Layer sensitivity: what quantising a single layer does to a trained network, on a few batches.

`measure_over` runs the network once per layer and format: quality drop, and noise of the logits. `fisher_over` needs
one backward pass per batch: Fisher scores (`fisher`). Both show at low cost which layers need more bits, and are the
input of the methods in `assignment`. They ignore how the errors of several layers interact, and what training would
recover.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from aqt_like import format_choice, interception
from aqt_like.format_probe import fisher_scores
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


class _Measured(NamedTuple):
    """What a batch tells.

    Attributes:
      statistics: statistics of the quality of the float network.
      statistics_quantized: the same with one layer quantised, leaves `[L, K, …]`.
      signal: float32, sum of the squares of the centred float logits.
      noise: float32[L, K], sum of the squares of the change of the logits.
    """

    statistics: Any
    statistics_quantized: Any
    signal: jax.Array
    noise: jax.Array


def make_measure(search: Search) -> Callable[[SearchState, Batch], _Measured]:
    """Makes `(state, batch) → measured`, which loops over all layers and formats inside one compiled function."""
    count, formats = len(search.paths), search.bank.signed.bits.shape[0]

    def measure(state: SearchState, batch: Batch) -> _Measured:
        profile = interception.stacked_calibration(search.paths, state.calibration)

        def logits(choice: jax.Array, quantized: jax.Array) -> jax.Array:
            rows = format_choice.format_state(
                search.paths, search.bank, state.clip_multiples, choice, profile, quantized, quantize_weights=quantized
            )
            variables = {**state.variables, "formats": rows}
            return interception.apply_quantized(
                search.model, variables, batch["input"], quantizer=search.quantizer, train=False
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
        return _Measured(reference_statistics, statistics, jnp.sum(jnp.square(centred) * real), noise)

    return measure


def measure_over(search: Search, state: SearchState, batches: Iterable[Any]) -> Sensitivity:
    """Sensitivity over all `batches`, whose leaves may be NumPy arrays.

    Raises:
      ValueError: there are no batches.
    """
    measure = jax.jit(make_measure(search))
    measured = [jax.device_get(measure(state, batch)) for batch in batches]
    if not measured:
        raise ValueError("no batches to measure the sensitivity on")
    statistics, statistics_quantized, signal, noise = zip(*measured, strict=True)
    quality = float(search.quality.value(search.quality.joined(statistics)))
    quantized = jax.vmap(jax.vmap(search.quality.value))(search.quality.joined(statistics_quantized))
    return Sensitivity(
        quality=quality,
        quality_drop=quality - np.asarray(quantized, np.float64),
        noise_to_signal=np.asarray(noise, np.float64).sum(axis=0) / np.asarray(signal, np.float64).sum(),
    )


def make_fisher_scores(search: Search) -> Callable[[SearchState, Batch], jax.Array]:
    """Makes `(state, batch) → float32[L, K]`, the Fisher scores of `fisher_over` on one batch; to be jitted."""
    bank, layers, formats = search.bank, len(search.paths), search.bank.signed.bits.shape[0]
    # Values in float are no codes: bfloat16 would round them.
    quantizer = search.quantizer._replace(operands=jnp.float32)

    def scores(state: SearchState, batch: Batch) -> jax.Array:
        profile = interception.stacked_calibration(search.paths, state.calibration)
        none, multiples, examples = jnp.zeros(layers, bool), state.clip_multiples, len(batch["label"])
        in_float = format_choice.chosen_formats(
            bank, multiples, jnp.zeros(layers, jnp.int32), profile, none, quantize_weights=none
        )

        def loss(probed: jax.Array) -> jax.Array:
            probe = format_choice.probe_all_formats(
                bank, multiples, profile, probed, active=jnp.asarray(True), examples=examples
            )
            rows = interception.by_layer(search.paths, in_float._replace(probe=probe))
            variables = {**state.variables, "formats": rows}
            logits = interception.apply_quantized(
                search.model, variables, batch["input"], quantizer=quantizer, train=False
            )
            try:
                return search.loss(logits, batch)
            except KeyError as error:
                raise ValueError(
                    f"the loss reads {error}, but a batch has only {', '.join(batch)}: Fisher scores need batches as "
                    "in training"
                ) from error

        squares = jax.grad(loss)(jnp.zeros((layers, 2, formats)))
        return fisher_scores(squares, examples)

    return scores


def fisher_over(search: Search, state: SearchState, batches: Iterable[Any]) -> np.ndarray:
    """Fisher scores of L layers in K formats, in units of the squared loss: means over `batches`.

    With the slopes at the weights and inputs of the float network in inference mode, by B examples of a batch, the
    score is B / 2 · ((slope of the mean loss · rounding error of the weights)² + Σ over examples of the same of an
    example's inputs): half the squared change of one example's loss, to first order. Inputs that were never profiled
    have the score 0.

    Args:
      search: its network, loss and formats.
      state: weights, batch statistics, profiles and clip multiples.
      batches: batches of one size with all that the loss reads, and without padding; leaves may be NumPy arrays.

    Returns:
      float64[L, K].

    Raises:
      ValueError: there are no batches, some are padded, the loss reads what they lack, or scores are not finite.
    """
    scores_of = jax.jit(make_fisher_scores(search))
    total, count = np.zeros(()), 0
    for batch in batches:
        labels = np.asarray(batch["label"])
        if (labels.reshape(len(labels), -1) < 0).all(axis=1).any():
            raise ValueError("a batch is padded with examples of label −1: Fisher scores need whole batches")
        total = total + np.asarray(scores_of(state, batch), np.float64)
        count += 1
    if not count:
        raise ValueError("no batches to measure Fisher scores on")
    if not np.isfinite(total).all():
        raise ValueError("Fisher scores are not finite: the loss, or its slope, is not")
    return total / count
