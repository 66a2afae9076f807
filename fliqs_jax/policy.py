"""Policy of the controller: an independent softmax per decision (FLIQS, Eq. 2).

A policy is plain data (logits), so one compiled step serves the search, uniform sampling and a fixed genome.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hwcost.space import SearchSpace

POLICIES = ("reinforce", "uniform", "fixed")


class Policy(NamedTuple):
    """Independent categorical distributions over the options of each decision.

    Attributes:
      logits: float32[D, Kmax], θ in Eq. 2; −inf where the option does not exist or must not be sampled.
      learns: bool scalar, whether `logits` are updated from rewards.
    """

    logits: jax.Array
    learns: jax.Array

    def uniform(self) -> "Policy":
        """Policy that samples all allowed options with equal probability."""
        return self._replace(logits=_flat_logits(jnp.isfinite(self.logits)))

    def sample(self, key: jax.Array) -> jax.Array:
        """Samples a genome, int32[D]."""
        return jax.random.categorical(key, self.logits).astype(jnp.int32)

    def log_prob(self, genome: jax.Array) -> jax.Array:
        """Log-probability of a genome, int32[D]: sum over decisions, float32 scalar (FLIQS, Eq. 3)."""
        log_probs = jax.nn.log_softmax(self.logits)
        return jnp.sum(jnp.take_along_axis(log_probs, genome[:, None], axis=1))

    def entropy(self) -> jax.Array:
        """Entropy H_M in nats: sum over decisions, float32 scalar (FLIQS, Eq. 6)."""
        log_probs = jax.nn.log_softmax(self.logits)
        # −inf logits have probability 0 and must give neither NaN nor a NaN gradient.
        finite = jnp.where(jnp.isfinite(self.logits), log_probs, 0.0)
        return -jnp.sum(jnp.exp(log_probs) * finite)

    def mode(self) -> jax.Array:
        """Most probable genome, int32[D]: the result of a search."""
        return jnp.argmax(self.logits, axis=1).astype(jnp.int32)


def init_policy(space: SearchSpace, kind: str, genome: Sequence[int] | np.ndarray | None = None) -> Policy:
    """Initial policy of a run.

    Args:
      space: decisions and their options.
      kind: `"reinforce"` starts uniform and learns; `"uniform"` does not learn; `"fixed"` always samples `genome`.
      genome: int[D], for `"fixed"` only.

    Raises:
      ValueError: unknown kind, or a genome that is missing, not allowed for this kind, or not in `space`.
    """
    if kind not in POLICIES:
        raise ValueError(f"unknown policy {kind!r}: expected one of {', '.join(POLICIES)}")
    if (kind == "fixed") != (genome is not None):
        raise ValueError(f"policy {kind!r} {'needs a' if kind == 'fixed' else 'takes no'} genome")
    options = np.arange(space.option_counts.max())
    allowed = options < space.option_counts[:, None]
    if genome is not None:
        space.decode(genome)
        allowed &= options == np.asarray(genome)[:, None]
    return Policy(_flat_logits(jnp.asarray(allowed)), jnp.asarray(kind == "reinforce"))


def _flat_logits(allowed: jax.Array) -> jax.Array:
    return jnp.where(allowed, jnp.float32(0), -jnp.inf)
