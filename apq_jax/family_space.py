"""A family of FLIQS as a space of APQ: its decisions, and a format for each layer."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from apq_jax import network_space
from aqt_like.formats import LayerFormat
from fliqs_jax.models import elastic, kernel_sizes
from fliqs_jax.models.elastic import Family
from hwcost import genome_file, workload
from hwcost.cost_model import CostModel
from hwcost.format_plan import FormatPlan, format_plan
from hwcost.pricing import CostTable
from hwcost.space import SearchSpace
from hwcost.workload import Workload


@dataclasses.dataclass(frozen=True)
class FamilySpace:
    """The networks of a family, with one format in each layer; all genomes are valid (`network_space.NetworkSpace`).

    Attributes:
      family: the networks.
      plan: the decisions on formats, then those of the family.
      example_shape: of one input.
      classes: number of classes.
      model: settings of the network that the family is made from, for genome files.
    """

    family: Family
    plan: FormatPlan
    example_shape: tuple[int, ...]
    classes: int
    model: Mapping[str, Any]

    @property
    def search_space(self) -> SearchSpace:
        """The D decisions."""
        return self.plan.space

    @functools.cached_property
    def group(self) -> np.ndarray:
        """int32[D]: a number per block, or per layer outside of blocks."""
        return network_space.groups_by_part(self.search_space)

    @functools.cached_property
    def _on_formats(self) -> np.ndarray:
        """bool[D]: which decisions are on formats."""
        return np.isin(np.arange(len(self.search_space)), self.plan.decision_of)

    @functools.cached_property
    def largest(self) -> np.ndarray:
        """int32[D]: the last option of each decision of the family, and the most bits."""
        bits = np.where(self.search_space.exists, self.plan.option_bits(), -1)
        last = self.search_space.option_counts - 1
        return np.where(self._on_formats, bits.argmax(axis=1), last).astype(np.int32)

    @functools.cached_property
    def smallest(self) -> np.ndarray:
        """int32[D]: the first option of each decision of the family, and the fewest bits."""
        return np.where(self._on_formats, self.plan.option_bits().argmin(axis=1), 0).astype(np.int32)

    @property
    def layers(self) -> Workload:
        """The L layers of the largest network, in the order in which they run."""
        return self.plan.workload

    @property
    def base_layers(self) -> Workload:
        """The layers of the network that the family is made from."""
        return self.plan.base_workload

    @property
    def formats(self) -> tuple[LayerFormat, ...]:
        """The K formats that layers choose from."""
        return self.plan.formats

    def format_choice(self, genome: jax.Array) -> jax.Array:
        """Index into `formats` of each layer, int32[L]."""
        return self.plan.choice(genome)

    def is_valid(self, genome: Any) -> np.ndarray:
        """bool[...]: all are."""
        return np.ones(np.shape(genome)[:-1], bool)

    def made_valid(self, genome: Any) -> jax.Array:
        """The genome itself."""
        return jnp.asarray(genome)

    def canonical(self, genome: Any) -> jax.Array:
        """The genome itself: no two are of one network."""
        return jnp.asarray(genome)

    def sample(self, key: jax.Array) -> jax.Array:
        """A uniformly random genome, int32[D]."""
        counts = jnp.asarray(self.search_space.option_counts)
        return jax.random.randint(key, (len(self.search_space),), 0, counts)

    def with_formats(self, genome: Any, formats_of: Any) -> jax.Array:
        """The genome with all formats of the genome `formats_of`."""
        return jnp.where(self._on_formats, formats_of, genome)

    def family_genome(self, genome: Any) -> np.ndarray:
        """The genome of the family, int32[A]."""
        return self.plan.architecture_of(genome)

    @functools.cached_property
    def _features(self) -> tuple[np.ndarray, np.ndarray]:
        """Decision and option of each feature, int32[F] each: those of the family, then those on formats."""
        order = np.argsort(self._on_formats, kind="stable")
        counts = self.search_space.option_counts[order]
        return np.repeat(order, counts), np.concatenate([np.arange(count) for count in counts])

    @property
    def architecture_features(self) -> int:
        """Number of features that precede those of the formats."""
        return int(self.search_space.option_counts[~self._on_formats].sum())

    def features(self, genome: Any) -> jax.Array:
        """One-hot encoding, float32[..., F]: the family's decisions, then formats."""
        decision, option = self._features
        return (jnp.asarray(genome)[..., decision] == option).astype(jnp.float32)

    def cost_table(self, model: CostModel) -> CostTable:
        """The lookup table of costs: a term for each layer."""
        return model.table(self.plan)

    def named(self, genome: Any) -> genome_file.Genome:
        """The genome with the settings of its network; granularities are for the run that fine-tunes it."""
        named = self.plan.named(genome)
        return dataclasses.replace(
            named,
            layers={path: choice._replace(granularity="") for path, choice in named.layers.items()},
            architecture={**self.model, **named.architecture},
        )

    def encode(self, named: genome_file.Genome) -> np.ndarray:
        """The genome, int32[D], of a genome file of APQ or FLIQS.

        Raises:
          GenomeFileError: it is of another network, or of formats that are not here.
        """
        return self.plan.encode(named)


def of_family(
    family: Family,
    formats: Sequence[LayerFormat],
    example_shape: tuple[int, ...],
    classes: int,
    model: Mapping[str, Any],
) -> FamilySpace:
    """The space of a family with a format for each layer; see `FamilySpace`.

    Smaller kernels are the insides of larger ones, as in all once-for-all networks (`kernel_sizes.NESTED`).
    """
    layers = workload.trace(family.largest, example_shape, train=False)
    plan = format_plan(layers, formats, (), elastic.architecture(family, layers))
    return FamilySpace(family._replace(kernel_sizes=kernel_sizes.NESTED), plan, example_shape, classes, model)
