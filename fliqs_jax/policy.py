"""Policy of the controller: an independent softmax per decision (FLIQS, Eq. 2).

A policy is plain data (logits), so one compiled step serves the search, uniform sampling and a fixed genome.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hwcost.expected_pricing import RelativeCosts
from hwcost.space import SearchSpace

POLICIES = ("searched", "uniform", "fixed")


class Policy(NamedTuple):
    """Independent categorical distributions over the options of each decision.

    Attributes:
      logits: float32[D, Kmax], θ in Eq. 2; −inf where the option does not exist or must not be sampled.
      learns: bool scalar, whether `logits` are those of a controller.
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
      kind: `"searched"` is uniform until a controller's scores replace its logits; `"uniform"` stays so; `"fixed"`
        always samples `genome`.
      genome: int[D], for `"fixed"` only.

    Raises:
      ValueError: unknown kind, or a genome that is missing, not allowed for this kind, or not in `space`.
    """
    if kind not in POLICIES:
        raise ValueError(f"unknown policy {kind!r}: expected one of {', '.join(POLICIES)}")
    if (kind == "fixed") != (genome is not None):
        raise ValueError(f"policy {kind!r} {'needs a' if kind == 'fixed' else 'takes no'} genome")
    allowed = space.exists
    if genome is not None:
        space.decode(genome)
        allowed &= np.arange(allowed.shape[1]) == np.asarray(genome)[:, None]
    return Policy(_flat_logits(jnp.asarray(allowed)), jnp.asarray(kind == "searched"))


_SWEEPS = 24  # over several budgets, in turn, and to marginal costs that are those of the policy
_EXPONENTS = (-6.0, 8.0)  # of 10, of multipliers relative to the scores
_DIVISIONS = ((16, 7), (2, 28))  # of the interval of exponents: parts and rounds, of sums over decisions and of others


def within_budget(scores: jax.Array, costs: RelativeCosts) -> jax.Array:
    """The logits of the policy ∝ exp(scores − Σ λ · cost) whose expected costs are at most 1.

    The cost of an option is what it adds to the expected cost while all other decisions are drawn from that policy: of
    a sum over decisions its own, else the marginal cost, which follows the policy over a number of sweeps, halfway each
    time. Expected costs are exact in both cases.

    Each λ ≥ 0 is the smallest that does it: where the scores alone cost less it is 0, else that expected cost is 1. It
    is found by bisection, for several budgets in turn until all hold: for sums over decisions, the logarithm of the
    normalising constant is convex in λ, and this is coordinate descent on it. Of several budgets under scores so sharp
    that hardly anything is left to chance, all but one may stay below their targets.

    Args:
      scores: float32[D, Kmax], −inf where there is no option.
      costs: of M budgets, for one set of targets, in float32.

    Returns:
      float32[D, Kmax].
    """
    budgets = range(len(costs.joint))
    parts, rounds = _DIVISIONS[costs.is_joint]
    scale = 1 + jnp.max(jnp.where(jnp.isfinite(scores), jnp.abs(scores), 0.0))

    def logits(multipliers: jax.Array, slopes: jax.Array) -> jax.Array:
        return scores - jnp.sum(multipliers[:, None, None] * slopes, axis=0)

    def solve(multipliers: jax.Array, slopes: jax.Array, budget: int) -> jax.Array:
        def cost_at(multiplier: jax.Array) -> jax.Array:
            tried = logits(multipliers.at[budget].set(multiplier), slopes)
            return costs.expected(jax.nn.softmax(tried), budget)

        def divide(_: int, interval: jax.Array) -> jax.Array:
            low, high = interval
            exponents = low + (high - low) * jnp.arange(parts + 1) / parts
            between = scale * 10.0 ** exponents[1:-1]
            # One by one, the gathers of joint terms are ten times as fast.
            priced = jax.lax.map(cost_at, between) if costs.is_joint else jax.vmap(cost_at)(between)
            last = 1 + jnp.argmax(jnp.append(priced <= 1, True))
            return jnp.stack([exponents[last - 1], exponents[last]])

        _, exponent = jax.lax.fori_loop(0, rounds, divide, jnp.asarray(_EXPONENTS))
        found = jnp.where(cost_at(jnp.zeros(())) <= 1, 0.0, scale * 10.0**exponent)
        return multipliers.at[budget].set(found)

    def sweep(_: int, carried: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        multipliers, slopes = carried
        if costs.is_joint:
            slopes = (slopes + costs.marginals(jax.nn.softmax(logits(multipliers, slopes)))) / 2
        for budget in budgets:
            multipliers = solve(multipliers, slopes, budget)
        return multipliers, slopes

    multipliers = jnp.zeros(len(budgets))
    slopes = costs.marginals(jax.nn.softmax(scores)) if costs.is_joint else jnp.asarray(costs.per_option)
    if not costs.is_joint and len(budgets) == 1:
        return logits(solve(multipliers, slopes, 0), slopes)
    return logits(*jax.lax.fori_loop(0, _SWEEPS, sweep, (multipliers, slopes)))


def _flat_logits(allowed: jax.Array) -> jax.Array:
    return jnp.where(allowed, jnp.float32(0), -jnp.inf)
