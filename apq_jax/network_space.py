"""What APQ needs of the space that it searches: networks of a family with formats, and genomes that say both."""

import re
from typing import Any, Protocol

import jax
import numpy as np

from apq_jax import within_budgets
from aqt_like.formats import LayerFormat
from fliqs_jax.models.elastic import Family
from hwcost import genome_file
from hwcost.cost_model import CostModel
from hwcost.pricing import CostTable
from hwcost.space import SearchSpace
from hwcost.workload import Workload


class NetworkSpace(within_budgets.Space, Protocol):
    """The space that once-for-all training, records, predictors and finishing need beside what evolution does.

    Such as `apq_jax.architecture_space.ArchitectureSpace` and `apq_jax.family_space.FamilySpace`.
    """

    @property
    def family(self) -> Family:
        """The networks without formats, whose decisions are some of the space's."""
        ...

    @property
    def layers(self) -> Workload:
        """The L layers of the largest network, in the order in which they run."""
        ...

    @property
    def base_layers(self) -> Workload:
        """The layers of the network that a format as the unit of a cost stands for."""
        ...

    @property
    def example_shape(self) -> tuple[int, ...]:
        """Of one input, `(H, W, C)`."""
        ...

    @property
    def classes(self) -> int:
        """Number of classes."""
        ...

    @property
    def largest(self) -> np.ndarray:
        """int32[D]: the genome of the largest network in the widest formats."""
        ...

    @property
    def formats(self) -> tuple[LayerFormat, ...]:
        """The K formats that layers choose from."""
        ...

    @property
    def architecture_features(self) -> int:
        """Number of features that precede those of the formats: the input of the float predictor."""
        ...

    def format_choice(self, genome: jax.Array) -> jax.Array:
        """Index into `formats` of each layer, int32[L], for a genome, int32[D], which may be traced."""
        ...

    def features(self, genome: Any) -> jax.Array:
        """One-hot encoding of genomes, int32[..., D]: float32[..., F], equal for equal networks."""
        ...

    def with_formats(self, genome: Any, formats_of: Any) -> jax.Array:
        """Genomes, int32[..., D], with all formats of the genome `formats_of`; they may need `made_valid`."""
        ...

    def canonical(self, genome: Any) -> jax.Array:
        """Genomes, int32[..., D], so that equal networks have equal ones."""
        ...

    def family_genome(self, genome: Any) -> np.ndarray:
        """The genome of `family`, int32[A], in a genome, int32[D]."""
        ...

    def cost_table(self, model: CostModel) -> CostTable:
        """The lookup table of costs (APQ, §3.3).

        Raises:
          ValueError: the model cannot price a layer, or this space.
        """
        ...

    def named(self, genome: Any) -> genome_file.Genome:
        """A genome, int32[D], as genome files hold it, with the settings of its network."""
        ...

    def encode(self, named: genome_file.Genome) -> np.ndarray:
        """The genome, int32[D], of a genome file.

        Raises:
          GenomeFileError: it is of another space.
        """
        ...


def groups_by_part(space: SearchSpace) -> np.ndarray:
    """int32[D]: a number for each part of a network, such as a block, by the first word of names of decisions."""
    parts = [re.split(r"[./]", decision.name)[0] for decision in space.decisions]
    return np.unique(parts, return_inverse=True)[1].astype(np.int32)
