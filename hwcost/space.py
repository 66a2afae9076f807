"""Search spaces: an ordered list of named decisions, and the genomes that pick one option of each."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Decision:
    """One choice: a name, unique within its space, and the names of its options."""

    name: str
    options: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class SearchSpace:
    """An ordered list of decisions. A genome is an `int32[D]` vector: one option index per decision."""

    decisions: tuple[Decision, ...]

    def __post_init__(self) -> None:
        names = [d.name for d in self.decisions]
        if len(set(names)) < len(names):
            raise ValueError(f"decisions with the same name: {sorted({n for n in names if names.count(n) > 1})}")

    def __len__(self) -> int:
        return len(self.decisions)

    @property
    def option_counts(self) -> np.ndarray:
        """int32[D]: the number of options of each decision."""
        return np.asarray([len(d.options) for d in self.decisions], np.int32)

    def index(self, name: str) -> int:
        """Position of the decision `name`."""
        for i, decision in enumerate(self.decisions):
            if decision.name == name:
                return i
        raise ValueError(f"no decision {name!r}: the space has {', '.join(d.name for d in self.decisions)}")

    def encode(self, choices: Mapping[str, str]) -> np.ndarray:
        """The genome of one option name per decision.

        Raises:
          ValueError: a decision that is missing or unknown, or an option that its decision does not have.
        """
        names = [d.name for d in self.decisions]
        missing, unknown = sorted(set(names) - set(choices)), sorted(set(choices) - set(names))
        if missing or unknown:
            raise ValueError(f"choices do not fit the search space: missing {missing}, unknown {unknown}")
        genome = []
        for decision in self.decisions:
            option = choices[decision.name]
            if option not in decision.options:
                raise ValueError(
                    f"{decision.name}: no option {option!r}, expected one of {', '.join(decision.options)}"
                )
            genome.append(decision.options.index(option))
        return np.asarray(genome, np.int32)

    def decode(self, genome: Sequence[int] | np.ndarray) -> dict[str, str]:
        """The option name of each decision.

        Raises:
          ValueError: a genome of the wrong length, or an index out of range.
        """
        indices = [int(g) for g in genome]
        if len(indices) != len(self):
            raise ValueError(f"genome of length {len(indices)}: this search space has {len(self)} decisions")
        for index, decision in zip(indices, self.decisions, strict=True):
            if not 0 <= index < len(decision.options):
                raise ValueError(f"{decision.name}: option {index} is not in 0…{len(decision.options) - 1}")
        return {d.name: d.options[i] for i, d in zip(indices, self.decisions, strict=True)}
