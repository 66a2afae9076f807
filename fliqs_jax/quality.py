"""Quality of a network: Q in the reward (FLIQS, Eq. 1), and the metric that is reported at the end.

A quality is defined by batch statistics that add up over batches, and by the value of their sum.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fliqs_jax.losses import Batch

AUC_BINS = 8192


class Quality(NamedTuple):
    """A quality metric; its functions are traced by JAX.

    Attributes:
      name: label in tables, and key in summaries.
      statistics: `(logits, batch) → pytree of arrays`, to be summed over batches. Labels of −1 are padding.
      value: `(statistics) → scalar`, between 0 and 1, higher is better.
    """

    name: str
    statistics: Callable[[jax.Array, Batch], Any]
    value: Callable[[Any], jax.Array]

    def on_batch(self, logits: jax.Array, batch: Batch) -> jax.Array:
        """Quality on one batch, scalar."""
        return self.value(self.statistics(logits, batch))


def _correct_and_total(logits: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Numbers of correct predictions and of labels; labels are int32 of any shape, −1 is padding."""
    label = batch["label"]
    return jnp.sum(jnp.argmax(logits, -1) == label), jnp.sum(label >= 0)


def _fraction_correct(counts: tuple[jax.Array, jax.Array]) -> jax.Array:
    correct, total = counts
    return correct / jnp.maximum(total, 1)


accuracy = Quality("accuracy", _correct_and_total, _fraction_correct)


def _score_histograms(logits: jax.Array, batch: Batch) -> jax.Array:
    """Histograms of the predicted probability for label 0 and for label 1: int32[2, bins]."""
    label = batch["label"]
    bins = jnp.clip(jnp.int32(jax.nn.sigmoid(logits[..., 0]) * AUC_BINS), 0, AUC_BINS - 1)
    return jnp.zeros((2, AUC_BINS), jnp.int32).at[jnp.maximum(label, 0), bins].add(jnp.int32(label >= 0))


def _area_under_curve(histograms: jax.Array) -> jax.Array:
    negative, positive = jnp.float32(histograms)
    below = jnp.cumsum(negative) - negative
    # A pair within one bin counts as a tie.
    ordered = jnp.sum(positive * (below + negative / 2))
    pairs = jnp.sum(negative) * jnp.sum(positive)
    return jnp.where(pairs > 0, ordered / jnp.maximum(pairs, 1.0), 0.5)


auc = Quality("AUC", _score_histograms, _area_under_curve)
"""Area under the ROC curve of a binary classifier with one logit (FLIQS, A.13): the fraction of (negative, positive)
pairs that the logit ranks correctly. Probabilities in the same of the 8,192 bins count as ties; it is 0.5 if all labels
are equal."""

QUALITIES: dict[str, Quality] = {"accuracy": accuracy, "auc": auc}
