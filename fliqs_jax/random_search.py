"""Random search on a network trained under uniformly drawn formats: the baseline that a learned policy has to beat."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from fliqs_jax.search import Search, SearchState
from hwcost import pricing


def best_of_random(
    search: Search,
    state: SearchState,
    quality: Callable[[jax.Array], float],
    key: jax.Array,
    *,
    draws: int,
    evaluated: int,
) -> jax.Array:
    """The genome of highest reward among the `evaluated` ones nearest to the cost target, out of `draws` uniform draws.

    Args:
      search: gives cost, target and reward.
      state: gives the policy, whose allowed options are drawn uniformly.
      quality: validation quality of a genome under the weights in `state`.
      key: PRNG key.
      draws: genomes drawn and priced, in one vmapped call.
      evaluated: how many of them `quality` is called on.

    Returns:
      int32[D].
    """
    flat = state.policy.uniform()
    drawn = jax.jit(jax.vmap(flat.sample))(jax.random.split(key, draws))
    genomes = jnp.unique(drawn, axis=0)
    relative = jax.jit(jax.vmap(lambda g: pricing.price_relative(search.budgets, g)))(genomes)
    nearest = jnp.argsort(jnp.abs(relative - 1))[:evaluated]
    rewards = [float(search.reward(jnp.asarray(quality(genomes[i])), relative[i], search.gamma)) for i in nearest]
    return genomes[nearest[int(np.argmax(rewards))]]
