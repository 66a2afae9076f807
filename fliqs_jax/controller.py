"""Contract of controllers: where the scores come from by which the formats of each step are sampled.

A controller knows the search space and its costs, neither the network nor the step. `fliqs_jax.reinforce` is that of
the paper, `fliqs_jax.fisher` another; a third is one more file that makes a `Controller`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax


class Observation(NamedTuple):
    """What a step tells a controller.

    Attributes:
      step: int32, number of steps completed before.
      key: PRNG key for the controller.
      genomes: int32[N, D], sampled genomes whose quality was measured on one validation batch; weights were trained
        under the first in this step. N is `Controller.draws`.
      logits: float32[D, Kmax], of the policy that they were sampled from; −inf where there is no option.
      qualities: float32[N].
      relative_costs: float32[N], largest cost over target.
      losses: float32[D, Kmax], Fisher score of each option on the training batch (see `fisher`); zeros unless
        `Controller.examples` is above 0.
    """

    step: jax.Array
    key: jax.Array
    genomes: jax.Array
    logits: jax.Array
    qualities: jax.Array
    relative_costs: jax.Array
    losses: jax.Array


class Controller(NamedTuple):
    """Pure functions, which are traced.

    Attributes:
      init: `() -> state`, a pytree of arrays.
      scores: `(state, step) -> float32[D, Kmax]`, finite; the policy is their softmax over the options of a decision.
      learn: `(state, observation) -> (state, metrics)`; metrics are scalars by name, for the records of training.
      within_budget: whether the scores are sampled such that the expected cost is the target (`policy.within_budget`),
        and the result is the genome of the highest sum of scores within the budgets.
      draws: number of genomes whose quality is measured at each step; 0 spares the validation forward.
      examples: number of training examples per step on which Fisher scores are measured; 0: none are.
      freeze_fraction: fraction of training from which on the preferred genome is trained, and no other; 1: none is.
    """

    init: Callable[[], Any]
    scores: Callable[[Any, jax.Array], jax.Array]
    learn: Callable[[Any, Observation], tuple[Any, dict[str, jax.Array]]]
    within_budget: bool
    draws: int = 1
    examples: int = 0
    freeze_fraction: float = 1.0
