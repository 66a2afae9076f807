"""Search spaces, ordered lists of named decisions, and genomes, which select one option of each decision."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Decision:
    """A decision: its name, unique in the search space, and the names of its options."""

    name: str
    options: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class SearchSpace:
    """An ordered list of D decisions. A genome is an int32[D] vector: one option index per decision.

    Raises:
      ValueError: two decisions have the same name.
    """

    decisions: tuple[Decision, ...]

    def __post_init__(self) -> None:
        names = [d.name for d in self.decisions]
        if len(set(names)) < len(names):
            raise ValueError(f"decisions with the same name: {sorted({n for n in names if names.count(n) > 1})}")

    def __len__(self) -> int:
        return len(self.decisions)

    @property
    def option_counts(self) -> np.ndarray:
        """The number of options of each decision, int32[D]."""
        return np.asarray([len(d.options) for d in self.decisions], np.int32)

    @property
    def exists(self) -> np.ndarray:
        """Whether a decision has an option of this number, bool[D, Kmax]."""
        return np.arange(self.option_counts.max()) < self.option_counts[:, None]

    def index(self, name: str) -> int:
        """The index of the decision `name`.

        Raises:
          ValueError: the space has no such decision.
        """
        for i, decision in enumerate(self.decisions):
            if decision.name == name:
                return i
        raise ValueError(f"no decision {name!r}: the space has {', '.join(d.name for d in self.decisions)}")

    def encode(self, choices: Mapping[str, str]) -> np.ndarray:
        """The genome, int32[D], of one option name per decision name.

        Raises:
          ValueError: a decision is missing or unknown, or does not have the option.
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
        """The option name of each decision, by decision name, for a genome, int32[D].

        Raises:
          ValueError: the genome has the wrong length, or an index is out of range.
        """
        indices = [int(g) for g in genome]
        if len(indices) != len(self):
            raise ValueError(f"genome of length {len(indices)}: this search space has {len(self)} decisions")
        for index, decision in zip(indices, self.decisions, strict=True):
            if not 0 <= index < len(decision.options):
                raise ValueError(f"{decision.name}: option {index} is not in 0…{len(decision.options) - 1}")
        return {d.name: d.options[i] for i, d in zip(indices, self.decisions, strict=True)}
