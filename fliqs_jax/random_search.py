"""Random search on a network that was trained with uniformly sampled formats: a baseline of the learned policy."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from fliqs_jax.reward import Reward
from fliqs_jax.search import Search, SearchState
from hwcost import pricing


def best_of_random(
    search: Search,
    state: SearchState,
    quality: Callable[[jax.Array], float],
    key: jax.Array,
    *,
    reward: Reward,
    gamma: float,
    draws: int,
    evaluated: int,
) -> jax.Array:
    """Genome of the highest reward among random genomes near the cost target.

    Args:
      search: defines cost and target.
      state: state after training; its policy defines the allowed options, which are sampled uniformly.
      quality: `(genome) → float`, validation quality under the weights in `state`.
      key: PRNG key, consumed.
      reward: `(Q, C/C_T, γ) -> scalar`.
      gamma: γ, the weight of the cost in the reward.
      draws: number of genomes that are sampled and priced, in one vmapped call.
      evaluated: number of genomes, those nearest to the target, that `quality` is called on.

    Returns:
      int32[D].

    Raises:
      ValueError: a reward is not finite.
    """
    uniform = state.policy(0).uniform()
    drawn = jax.jit(jax.vmap(uniform.sample))(jax.random.split(key, draws))
    genomes = jnp.unique(drawn, axis=0)
    relative = jax.jit(jax.vmap(lambda g: pricing.price_relative(search.budgets, g)))(genomes)
    nearest = jnp.argsort(jnp.abs(relative - 1))[:evaluated]
    rewards = [float(reward(jnp.asarray(quality(genomes[i])), relative[i], gamma)) for i in nearest]
    if not np.isfinite(rewards).all():
        raise ValueError(f"random search: rewards {rewards}: expected a quality and a cost that are finite")
    return genomes[nearest[int(np.argmax(rewards))]]
