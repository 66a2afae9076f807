"""Training losses: functions `(logits, batch) → scalar`. A batch has at least `"input"` and `"label"`.

The losses here take class numbers. A loss of yours that takes other labels says so in an attribute, the shape and type
of the label of one example: `loss.label = jax.ShapeDtypeStruct((3,), jnp.float32)`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

Batch = dict[str, jax.Array]
Loss = Callable[[jax.Array, Batch], jax.Array]

MIXED_LABEL, LABEL_SHARE = "mixed_label", "label_share"


def class_numbers(logits: jax.Array, batch: Batch) -> jax.Array:
    """The labels of a batch: a class number for each vector of logits; −1 is padding.

    Raises:
      ValueError: they are no integers of the logits' rank less one: other shapes would broadcast.
    """
    label = batch["label"]
    if logits.ndim < 2:
        raise ValueError(f"logits of shape {logits.shape}: expected [batch, …, logits]")
    if label.shape != logits.shape[:-1] or not jnp.issubdtype(label.dtype, jnp.integer):
        raise ValueError(
            f"labels of shape {label.shape} and type {label.dtype} for logits of shape {logits.shape}: expected "
            f"integers of shape {logits.shape[:-1]}"
        )
    return label


def cross_entropy(label_smoothing: float) -> Loss:
    """Mean softmax cross-entropy against smoothed labels (FLIQS, A.4: 0.1).

    Logits are float32[…, classes], labels int32[…]; those of −1 are padding and left out of the mean. For mixed images
    (mixup, Zhang et al., 2017), `"label_share"`, float32[B], is the weight of `"label"`, and 1 − share the weight of
    `"mixed_label"`, the label of the second image.

    The loss raises ValueError for shapes that do not go together, and for fewer than two logits.
    """

    def loss(logits: jax.Array, batch: Batch) -> jax.Array:
        label, classes = class_numbers(logits, batch), logits.shape[-1]
        if classes < 2:
            raise ValueError("cross-entropy needs a logit for each of two classes or more, got one logit")
        targets = _mixed(lambda label: jax.nn.one_hot(label, classes), label, batch)
        return _mean(optax.softmax_cross_entropy(logits, optax.smooth_labels(targets, label_smoothing)), label)

    return loss


def binary_cross_entropy(label_smoothing: float) -> Loss:
    """Mean sigmoid cross-entropy of one logit, float32[…, 1], against smoothed labels 0 and 1, int32[…].

    Padding, mixed images and errors are those of `cross_entropy`, but that one logit is expected.
    """

    def loss(logits: jax.Array, batch: Batch) -> jax.Array:
        label = class_numbers(logits, batch)
        if logits.shape[-1] != 1:
            raise ValueError(f"binary cross-entropy needs one logit, got {logits.shape[-1]}")
        targets = (1 - label_smoothing) * _mixed(jnp.float32, label, batch) + label_smoothing / 2
        return _mean(optax.sigmoid_binary_cross_entropy(logits[..., 0], targets), label)

    return loss


def _mixed(targets_of: Callable[[jax.Array], jax.Array], label: jax.Array, batch: Batch) -> jax.Array:
    """The targets of a batch, in which those of the second image have their share if images are mixed."""
    targets = targets_of(label)
    if MIXED_LABEL not in batch:
        return targets
    second, share = batch[MIXED_LABEL], batch[LABEL_SHARE]
    if second.shape != label.shape or share.shape != label.shape[:1]:
        raise ValueError(
            f"mixed labels of shape {second.shape} with shares of shape {share.shape}: expected {label.shape} and "
            f"{label.shape[:1]}"
        )
    share = share.reshape(-1, *[1] * (targets.ndim - 1))
    return share * targets + (1 - share) * targets_of(second)


def _mean(losses: jax.Array, label: jax.Array) -> jax.Array:
    """The mean over labels that are no padding; 0 if all are."""
    known = label >= 0
    return jnp.sum(jnp.where(known, losses, 0.0)) / jnp.maximum(jnp.sum(known), 1)


LOSSES: dict[str, Callable[[float], Loss]] = {
    "cross_entropy": cross_entropy,
    "binary_cross_entropy": binary_cross_entropy,
}
