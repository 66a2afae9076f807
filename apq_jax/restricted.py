"""A search space with some decisions fixed, for sequential pipelines that search stage by stage (APQ, Eq. 1–3)."""

import dataclasses
import functools
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from apq_jax.network_space import NetworkSpace
from hwcost.space import SearchSpace


@dataclasses.dataclass(frozen=True)
class RestrictedSpace:
    """A search space (`within_budgets.Space`) in which only some kinds of decisions are searched.

    Attributes:
      space: the space of all decisions.
      held: int32[D], a valid genome, which fixes the other decisions.
      kinds: the kinds that are searched, of `kernel`, `channels`, `depth` and `architecture_space.BIT_DECISIONS`.

    Raises:
      ValueError: a kind is unknown, or `held` contains a pair that the space excludes.
    """

    space: NetworkSpace
    held: np.ndarray
    kinds: Collection[str]

    def __post_init__(self) -> None:
        if unknown := set(self.kinds) - set(self._kinds):
            known = ", ".join(sorted(set(self._kinds)))
            raise ValueError(f"no decisions of kind {', '.join(sorted(unknown))}: there are {known}")
        if not self.is_valid(self.smallest):
            raise ValueError("the genome that is held leaves no valid one: it has what the space excludes")

    @functools.cached_property
    def _kinds(self) -> list[str]:
        """The kind of each decision."""
        return [decision.name.rpartition(".")[2] for decision in self.search_space.decisions]

    @functools.cached_property
    def _free(self) -> np.ndarray:
        """bool[D]: which decisions are searched."""
        return np.asarray([kind in self.kinds for kind in self._kinds])

    @functools.cached_property
    def _free_kernels(self) -> np.ndarray:
        """bool[D, D]: for each decision, which searched kernels are of the same block."""
        kernels = self._free & np.asarray([kind == "kernel" for kind in self._kinds])
        return (self.group[:, None] == self.group) & kernels

    @property
    def search_space(self) -> SearchSpace:
        """The D decisions of the whole space; fixed ones are part of genomes."""
        return self.space.search_space

    @property
    def group(self) -> np.ndarray:
        """int32[D]: the groups of the whole space."""
        return self.space.group

    @functools.cached_property
    def smallest(self) -> np.ndarray:
        """int32[D]: the genome with the first option of each searched decision, made valid."""
        return np.asarray(self.space.made_valid(np.where(self._free, self.space.smallest, self.held)))

    def is_valid(self, genome: Any) -> Any:
        """bool[...]: whether genomes, int32[..., D], are valid in the whole space and keep the fixed decisions."""
        return self.space.is_valid(genome) & (self._free | (genome == self.held)).all(axis=-1)

    def sample(self, key: jax.Array) -> jax.Array:
        """A random valid genome, int32[D]."""
        drawn = self.made_valid(jnp.where(self._free, self.space.sample(key), self.held))
        return jnp.where(self.is_valid(drawn), drawn, self.smallest)

    def made_valid(self, genome: Any) -> jax.Array:
        """Valid genomes, int32[..., D], from genomes whose decisions each come from one of two valid genomes.

        What the whole space would change in fixed bits is undone: a searched kernel of that block is the smallest then.
        """
        valid = self.space.made_valid(genome)
        undone = ~self._free & (valid != self.held)
        smaller = (undone[..., None] & self._free_kernels).any(axis=-2)
        return jnp.where(undone, self.held, jnp.where(smaller, self.space.smallest, valid))
