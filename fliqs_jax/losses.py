"""Training losses: functions `(logits, batch) → scalar`. A batch has at least `"input"` and `"label"`."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

Batch = dict[str, jax.Array]
Loss = Callable[[jax.Array, Batch], jax.Array]

MIXED_LABEL, LABEL_SHARE = "mixed_label", "label_share"


def cross_entropy(label_smoothing: float) -> Loss:
    """Mean softmax cross-entropy against smoothed labels (FLIQS, A.4: 0.1).

    Logits are float32[…, classes], labels int32[…]. For mixed images (mixup, Zhang et al., 2017), `"label_share"`,
    float32[B], is the weight of `"label"`, and 1 − share the weight of `"mixed_label"`, the label of the second image.
    """

    def loss(logits: jax.Array, batch: Batch) -> jax.Array:
        classes = logits.shape[-1]
        targets = jax.nn.one_hot(batch["label"], classes)
        if MIXED_LABEL in batch:
            share = batch[LABEL_SHARE][:, None]
            targets = share * targets + (1 - share) * jax.nn.one_hot(batch[MIXED_LABEL], classes)
        return jnp.mean(optax.softmax_cross_entropy(logits, optax.smooth_labels(targets, label_smoothing)))

    return loss


def binary_cross_entropy(label_smoothing: float) -> Loss:
    """Mean sigmoid cross-entropy of one logit, float32[B, 1], against smoothed labels 0 and 1, int32[B]."""

    def loss(logits: jax.Array, batch: Batch) -> jax.Array:
        targets = (1 - label_smoothing) * batch["label"] + label_smoothing / 2
        return jnp.mean(optax.sigmoid_binary_cross_entropy(logits[..., 0], targets))

    return loss


LOSSES: dict[str, Callable[[float], Loss]] = {
    "cross_entropy": cross_entropy,
    "binary_cross_entropy": binary_cross_entropy,
}
