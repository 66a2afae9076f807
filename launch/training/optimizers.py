"""Optimisers of the weights and their learning-rate schedules (FLIQS, Table 4)."""

from collections.abc import Callable
from typing import Any

import jax
import optax
from ml_collections import ConfigDict


def _cosine(config: ConfigDict, warmup: int, total_steps: int) -> optax.Schedule:
    start = 0.0 if warmup else config.learning_rate
    return optax.warmup_cosine_decay_schedule(start, config.learning_rate, warmup, total_steps)


def _exponential(config: ConfigDict, warmup: int, total_steps: int) -> optax.Schedule:
    start = 0.0 if warmup else config.learning_rate
    decay_steps = max(total_steps - warmup, 1)
    return optax.warmup_exponential_decay_schedule(start, config.learning_rate, warmup, decay_steps, config.decay_to)


SCHEDULES: dict[str, Callable[[ConfigDict, int, int], optax.Schedule]] = {
    "cosine": _cosine,
    "exponential": _exponential,
}


def _decay_mask(params: Any) -> Any:
    """Mask of weight decay: kernels decay, biases and normalisation parameters do not."""
    return jax.tree.map(lambda p: p.ndim > 1, params)


def _sgd(config: ConfigDict, rate: optax.Schedule) -> optax.GradientTransformation:
    return optax.chain(
        optax.add_decayed_weights(config.weight_decay, mask=_decay_mask),
        optax.sgd(rate, momentum=config.momentum, nesterov=True),
    )


def _adamw(config: ConfigDict, rate: optax.Schedule) -> optax.GradientTransformation:
    return optax.adamw(rate, b1=config.momentum, weight_decay=config.weight_decay, mask=_decay_mask)


def _rmsprop(config: ConfigDict, rate: optax.Schedule) -> optax.GradientTransformation:
    # Decay and epsilon as in the training of EfficientNet (Tan & Le, 2019) and MobileNetV2's reference implementation.
    return optax.chain(
        optax.add_decayed_weights(config.weight_decay, mask=_decay_mask),
        optax.rmsprop(rate, decay=0.9, eps=1e-3, momentum=config.momentum),
    )


def _frozen(config: ConfigDict, rate: optax.Schedule) -> optax.GradientTransformation:
    """Constant weights, for post-training quantisation: only calibration and a format search remain."""
    del config, rate
    return optax.set_to_zero()


OPTIMIZERS: dict[str, Callable[[ConfigDict, optax.Schedule], optax.GradientTransformation]] = {
    "sgd": _sgd,
    "adamw": _adamw,
    "rmsprop": _rmsprop,
    "frozen": _frozen,
}


def weight_optimizer(config: ConfigDict, total_steps: int) -> optax.GradientTransformation:
    """Optimiser of the weights from `config`, the `config.optimizer` of an experiment whose settings are checked."""
    warmup = round(config.warmup_fraction * total_steps)
    return OPTIMIZERS[config.name](config, SCHEDULES[config.schedule](config, warmup, total_steps))
