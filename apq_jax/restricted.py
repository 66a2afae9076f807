"""A space in which some decisions are made already, as in pipelines that search one thing after another (paper, §2)."""

import dataclasses
import functools
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from apq_jax.architectures import ArchitectureSpace
from hwcost.space import SearchSpace


@dataclasses.dataclass(frozen=True)
class RestrictedSpace:
    """What evolution needs of a space (`evolution.Space`), of which only some decisions are searched.

    Attributes:
      space: with all decisions.
      held: int32[D], a valid genome, which says what the others are.
      kinds: of decisions that are searched: `kernel`, `channels`, `depth` and `space.BIT_DECISIONS`.
    """

    space: ArchitectureSpace
    held: np.ndarray
    kinds: Collection[str]

    def __post_init__(self) -> None:
        known = {decision.name.rpartition(".")[2] for decision in self.search_space.decisions}
        if unknown := set(self.kinds) - known:
            raise ValueError(f"no decisions of kind {', '.join(sorted(unknown))}: there are {', '.join(sorted(known))}")
        if not self.is_valid(self.smallest):
            raise ValueError("the genome that is held leaves no valid one: it has what the space excludes")

    @functools.cached_property
    def _free(self) -> np.ndarray:
        """bool[D]: which decisions are searched."""
        return np.asarray([d.name.rpartition(".")[2] in self.kinds for d in self.search_space.decisions])

    @property
    def search_space(self) -> SearchSpace:
        """All decisions: genomes are those of the whole space."""
        return self.space.search_space

    @property
    def group(self) -> np.ndarray:
        """int32[D], as in the whole space."""
        return self.space.group

    @functools.cached_property
    def smallest(self) -> np.ndarray:
        """int32[D]: what is searched at its first options, but where that is excluded."""
        return np.asarray(self.space.made_valid(np.where(self._free, self.space.smallest, self.held)))

    def is_valid(self, genome: Any) -> Any:
        """bool[...] of int32[..., D]: whether it is valid in the whole space and as held."""
        return self.space.is_valid(genome) & (self._free | (genome == self.held)).all(axis=-1)

    def sample(self, key: jax.Array) -> jax.Array:
        """A random valid genome, int32[D]."""
        drawn = self.made_valid(jnp.where(self._free, self.space.sample(key), self.held))
        return jnp.where(self.is_valid(drawn), drawn, self.smallest)

    def made_valid(self, genome: Any) -> jax.Array:
        """A valid genome, int32[..., D], for one whose decisions come from two valid ones."""
        return self.space.made_valid(genome)
