"""The quality Q of a network: what the reward weighs against cost, and what is told at the end.

Both come from the same definition: statistics of a batch that add up over batches, and the value of their sum.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fliqs_jax.losses import Batch

AUC_BINS = 8192


class Quality(NamedTuple):
    """A quality, by functions that are traced.

    Attributes:
      name: for people, and the key in summaries.
      statistics: `(logits, batch) → pytree of arrays`, to be summed over batches. Labels of −1 are padding.
      value: `(statistics) → scalar`, between 0 and 1, higher is better.
    """

    name: str
    statistics: Callable[[jax.Array, Batch], Any]
    value: Callable[[Any], jax.Array]

    def on_batch(self, logits: jax.Array, batch: Batch) -> jax.Array:
        """The quality on one batch."""
        return self.value(self.statistics(logits, batch))


def _right_and_all(logits: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """How many labels, of any shape, are predicted, and how many there are."""
    label = batch["label"]
    return jnp.sum(jnp.argmax(logits, -1) == label), jnp.sum(label >= 0)


def _share(counts: tuple[jax.Array, jax.Array]) -> jax.Array:
    right, total = counts
    return right / jnp.maximum(total, 1)


accuracy = Quality("accuracy", _right_and_all, _share)


def _score_histograms(logits: jax.Array, batch: Batch) -> jax.Array:
    """How many examples of label 0 and of label 1 there are in each bin of predicted probability: int32[2, bins]."""
    label = batch["label"]
    bins = jnp.clip(jnp.int32(jax.nn.sigmoid(logits[..., 0]) * AUC_BINS), 0, AUC_BINS - 1)
    return jnp.zeros((2, AUC_BINS), jnp.int32).at[jnp.maximum(label, 0), bins].add(jnp.int32(label >= 0))


def _area(histograms: jax.Array) -> jax.Array:
    negative, positive = jnp.float32(histograms)
    below = jnp.cumsum(negative) - negative
    # A pair within one bin counts as a tie.
    ordered = jnp.sum(positive * (below + negative / 2))
    pairs = jnp.sum(negative) * jnp.sum(positive)
    return jnp.where(pairs > 0, ordered / jnp.maximum(pairs, 1.0), 0.5)


auc = Quality("AUC", _score_histograms, _area)
"""Area under the ROC curve of a two-class network with one logit: the share of pairs, one example of each label, that
the logit puts in order (FLIQS, A.13). Probabilities closer than 1/8192 count as tied; with one label only it is 0.5."""

QUALITIES: dict[str, Quality] = {"accuracy": accuracy, "auc": auc}
