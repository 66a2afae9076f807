"""Fisher scores: a controller that takes from gradients what each format of each layer would cost in loss.

The score of an option is half the expected square of the change of one example's loss, to first order, by the rounding
errors of the option's format (FIT; Zandonati et al., 2022), in the weights and inputs of its layers. Training steps
measure it on the gradients that they compute anyway (`aqt_like.format_probe`), for all formats whichever is trained. So
nothing needs to be explored, and no validation data are needed.

Slices of an input along its first axis count as independent examples, and so do the calls of a layer that is called
several times: scores of layers whose first axis is another one, and of recurrent layers, are rough.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fliqs_jax.controller import Controller, Observation

PRIOR_STEPS = 20  # in which the formats are those of the prior; at most a tenth of training
SHARPNESS = 1000.0  # at which hardly anything is left to chance


class FisherState(NamedTuple):
    """State of the controller.

    Attributes:
      losses: float32[D, Kmax], running mean of the score of each option.
      measured: int32, number of steps in it.
    """

    losses: jax.Array
    measured: jax.Array


def prior_losses(bits: np.ndarray) -> np.ndarray:
    """Losses by a rule that knows nothing of the network: all decisions alike, each bit halves the loss.

    Args:
      bits: float64[D, Kmax], mean bits of weights and inputs; infinite where there is no such option.

    Returns:
      float64[D, Kmax], 1 for the fewest bits of a decision, and 0 where there is no option.
    """
    return np.exp2(bits.min(axis=1, keepdims=True) - bits)


def make_controller(bits: np.ndarray, *, total_steps: int, examples: int) -> Controller:
    """The controller that samples, within the budget, by Fisher scores.

    Args:
      bits: float64[D, Kmax], see `prior_losses`.
      total_steps: number of training steps.
      examples: number of examples of a training batch on which the scores of inputs are measured.
    """
    prior, exists = jnp.asarray(prior_losses(bits), jnp.float32), np.isfinite(bits)
    choices = exists.sum(axis=1) > 1
    prior_steps = min(PRIOR_STEPS, total_steps // 10)

    def init() -> FisherState:
        return FisherState(jnp.zeros_like(prior), jnp.zeros((), jnp.int32))

    def scores(state: FisherState, step: jax.Array) -> jax.Array:
        del step
        # What decisions among several options are about, on average, is 1.
        spread = jnp.max(state.losses, axis=1, where=exists, initial=0) - jnp.min(
            state.losses, axis=1, where=exists, initial=jnp.inf
        )
        unit = jnp.maximum(jnp.mean(spread, where=choices) if choices.any() else 1.0, 1e-30)
        return -SHARPNESS * jnp.where(state.measured < prior_steps, prior, state.losses / unit)

    def learn(state: FisherState, seen: Observation) -> tuple[FisherState, dict[str, jax.Array]]:
        # A mean over all steps at first, then over about the latest fifth of them.
        rate = jnp.maximum(1 / (1.0 + state.measured), 5 / (5.0 + state.measured))
        return FisherState(state.losses + rate * (seen.losses - state.losses), state.measured + 1), {}

    return Controller(init, scores, learn, within_budget=True, draws=0, examples=examples)
