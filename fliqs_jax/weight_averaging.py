"""Averages of weights over training steps, which networks are evaluated and served with (Polyak and Juditsky, 1992).

The reference implementations of MobileNetV2 and EfficientNet do so, with a decay of 0.9999. The average is a part of
the optimiser's state, and is stored and restored with it.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class AveragedState(NamedTuple):
    """State of an optimiser that averages.

    Attributes:
      inner: state of the optimiser.
      average: average of the weights after each step, of their structure; zeros before the first.
      steps: int32, number of steps in it.
    """

    inner: Any
    average: Any
    steps: jax.Array


def averaged(optimizer: optax.GradientTransformation, decay: float) -> optax.GradientTransformation:
    """The optimiser, with an exponential moving average of the weights that it gives.

    Weights are those of the first step at first. After n steps the average is kept at `min(decay, (1 + n) / (10 + n))`,
    as in TensorFlow's `ExponentialMovingAverage`, so that it is not that of the beginning in short trainings.
    """

    def init(params: Any) -> AveragedState:
        return AveragedState(optimizer.init(params), jax.tree.map(jnp.zeros_like, params), jnp.zeros((), jnp.int32))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, inner = optimizer.update(updates, state.inner, params)
        steps = state.steps
        kept = jnp.where(steps > 0, jnp.minimum(decay, (1 + steps) / (10 + steps)), 0.0)
        new = optax.apply_updates(params, updates)
        average = jax.tree.map(lambda old, new: kept * old + (1 - kept) * new, state.average, new)
        return updates, AveragedState(inner, average, steps + 1)

    return optax.GradientTransformation(init, update)


def served_weights(params: Any, opt_state: Any) -> Any:
    """The weights to evaluate and serve after training: the average if the optimiser has one, else `params`."""
    return opt_state.average if isinstance(opt_state, AveragedState) else params
