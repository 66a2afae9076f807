"""Quality of a network: Q in the reward (FLIQS, Eq. 1), and the metric that is reported at the end.

A quality is defined by statistics of a batch, by how those of several batches are joined, and by their value.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fliqs_jax.losses import Batch, class_numbers


def added_up(statistics: Sequence[Any]) -> Any:
    """The sum of the statistics of batches, leaf by leaf, on the host."""
    return jax.tree.map(lambda *leaves: np.sum(leaves, axis=0), *statistics)


class Quality(NamedTuple):
    """A quality metric; `statistics` and `value` are traced by JAX.

    Attributes:
      name: label in tables, and key in summaries.
      statistics: `(logits, batch) → pytree of arrays`. Labels of −1 are padding.
      value: `(statistics) → scalar`, between 0 and 1, higher is better.
      joined: `([statistics, …]) → statistics`, of several batches, on the host; leaves may have additional axes in
        front.
    """

    name: str
    statistics: Callable[[jax.Array, Batch], Any]
    value: Callable[[Any], jax.Array]
    joined: Callable[[Sequence[Any]], Any] = added_up

    def on_batch(self, logits: jax.Array, batch: Batch) -> jax.Array:
        """Quality on one batch, scalar."""
        return self.value(self.statistics(logits, batch))


def _correct_and_total(logits: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Numbers of correct predictions and of labels; one logit predicts label 1 where it is positive."""
    label = class_numbers(logits, batch)
    predicted = jnp.int32(logits[..., 0] > 0) if logits.shape[-1] == 1 else jnp.argmax(logits, -1)
    return jnp.sum(predicted == label), jnp.sum(label >= 0)


def _fraction_correct(counts: tuple[jax.Array, jax.Array]) -> jax.Array:
    correct, total = counts
    return correct / jnp.maximum(total, 1)


accuracy = Quality("accuracy", _correct_and_total, _fraction_correct)
"""The share of labels that are right, which are class numbers; padding does not count."""


def _scores_and_labels(logits: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """The score of label 1 for each label, float32[N], and the labels, int32[N]."""
    label = class_numbers(logits, batch)
    if logits.shape[-1] > 2:
        raise ValueError(f"the AUC is of one logit or two, got {logits.shape[-1]}")
    scores = logits[..., 0] if logits.shape[-1] == 1 else logits[..., 1] - logits[..., 0]
    return scores.astype(jnp.float32).ravel(), label.ravel()


def _area_under_curve(scores_and_labels: tuple[jax.Array, jax.Array]) -> jax.Array:
    scores, label = scores_and_labels
    positive = label == 1
    negatives, positives = jnp.sum(label == 0), jnp.sum(positive)
    ascending = jnp.sort(jnp.where(label == 0, scores, jnp.inf))  # the negative ones, and infinity for all others
    below, up_to = (
        jnp.minimum(jnp.searchsorted(ascending, scores, side=side), negatives) for side in ("left", "right")
    )
    # The share of negatives below each score; pairs of equal scores count half.
    shares = (below + up_to) / (2 * jnp.maximum(negatives, 1))
    area = jnp.sum(jnp.where(positive, shares, 0.0)) / jnp.maximum(positives, 1)
    area = jnp.where((negatives > 0) & (positives > 0), area, 0.5)
    return jnp.where(jnp.any(jnp.isnan(scores) & (label >= 0)), jnp.nan, area)


def _in_a_row(statistics: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: np.concatenate(leaves, axis=-1), *statistics)


auc = Quality("AUC", _scores_and_labels, _area_under_curve, _in_a_row)
"""Area under the ROC curve of a binary classifier (FLIQS, A.13) with one logit, that of label 1, or with two: the
fraction of (negative, positive) pairs that are ranked correctly, exactly; equal scores count half. It is 0.5 if all
labels are equal, and NaN if a score is."""

QUALITIES: dict[str, Quality] = {"accuracy": accuracy, "auc": auc}
