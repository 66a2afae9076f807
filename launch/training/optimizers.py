"""Optimisers of the weights and their learning-rate schedules (FLIQS, Table 4)."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from hwcost import registry

_ANY_WEIGHTS = {"kernel": jax.ShapeDtypeStruct((2, 2), np.dtype(np.float32))}
_PASSED = ("weight_decay", "momentum")  # settings that an optimiser of the user's may take


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


def weight_optimizer(config: ConfigDict, total_steps: int, weights: Any = _ANY_WEIGHTS) -> optax.GradientTransformation:
    """Optimiser of the weights from `config`, the `config.optimizer` of an experiment whose settings are checked.

    One of the user's, `package.module:function`, is a function of the learning rate, an `optax.Schedule`, as
    `optax:lion` is. It receives `weight_decay` and `momentum` if it takes arguments of these names, and is tried on
    shapes and types of `weights`, since it may know them by name.

    Raises:
      ValueError: there is no such function, or it gives no optax transformation of gradients and weights.
    """
    warmup = round(config.warmup_fraction * total_steps)
    rate = SCHEDULES[config.schedule](config, warmup, total_steps)
    if config.name in OPTIMIZERS:
        return OPTIMIZERS[config.name](config, rate)
    function = registry.lookup("optimizer.name", config.name, OPTIMIZERS)
    try:
        optimizer = function(rate, **{name: config[name] for name in _taken(function)})
        jax.eval_shape(lambda tree: optimizer.update(tree, optimizer.init(tree), tree), weights)
    except Exception as error:  # Of a transformation of anybody's.
        raise ValueError(
            f"optimizer.name={config.name!r}: expected a function of the learning rate that gives an optax "
            f"transformation, which updates by gradients and weights alone: {type(error).__name__}: {error}"
        ) from error
    return optimizer


def unused_settings(config: ConfigDict) -> tuple[str, ...]:
    """Names of settings of an optimiser of the user's that it does not take."""
    if config.name in OPTIMIZERS:
        return ()
    return tuple(sorted(set(_PASSED) - set(_taken(registry.lookup("optimizer.name", config.name, OPTIMIZERS)))))


def _taken(function: Callable[..., Any]) -> list[str]:
    return [name for name in _PASSED if name in inspect.signature(function).parameters]
