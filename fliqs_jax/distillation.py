"""Knowledge distillation (Hinton et al., 2015): the logits of the teacher are part of the training batch."""

import jax
import jax.numpy as jnp
import optax

from fliqs_jax.losses import Batch, Loss

TEACHER_LOGITS = "teacher_logits"


def distilled(loss: Loss, *, weight: float, temperature: float) -> Loss:
    """Mixture of `loss` and the KL divergence between the softened outputs of teacher and network, mean over examples.

    (1 − weight) · loss + weight · temperature² · KL(softmax(teacher / temperature) ‖ softmax(logits / temperature)).
    Batches contain the logits of the teacher, float32[B, classes], as `"teacher_logits"`.

    Raises:
      ValueError: the weight is outside 0…1, or the temperature is not above 0; from the loss: the logits of the teacher
        have another shape.
    """
    if not 0 <= weight <= 1 or temperature <= 0:
        raise ValueError(f"weight {weight}, temperature {temperature}: expected 0…1 and a number above 0")

    def mixed(logits: jax.Array, batch: Batch) -> jax.Array:
        if batch[TEACHER_LOGITS].shape != logits.shape:
            raise ValueError(f"teacher's logits have shape {batch[TEACHER_LOGITS].shape}, the student's {logits.shape}")
        soft_targets = jax.nn.softmax(batch[TEACHER_LOGITS] / temperature)
        divergence = optax.kl_divergence(jax.nn.log_softmax(logits / temperature), soft_targets)
        return (1 - weight) * loss(logits, batch) + weight * temperature**2 * jnp.mean(divergence)

    return mixed
