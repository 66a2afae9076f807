"""The search space of APQ: depths, kernels, channels and bits of inverted residual blocks (APQ, §3.1 and §3.2).

A network is a stem, a block without expansion, stages of blocks, and a head. Each stage has a depth. Each block has a
kernel size, a number of expanded channels, and bit widths for the weights and the inputs of its pointwise and of its
depthwise convolutions. Blocks past the depth of their stage are skipped.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from apq_jax import network_space
from aqt_like.formats import LayerFormat, format_pair
from fliqs_jax.models import elastic, inverted_residuals, kernel_sizes
from fliqs_jax.models.blocks import elastic_layers
from fliqs_jax.models.elastic import Channels, ElasticLayer, Family, Gate
from fliqs_jax.models.inverted_residuals import BlockNetwork, BlockShape
from hwcost import genome_file, pricing, workload
from hwcost.cost_model import CostModel
from hwcost.genome_file import GenomeFileError, LayerChoice
from hwcost.pricing import CostTable, Term
from hwcost.space import Decision, SearchSpace
from hwcost.workload import LayerSpec, Workload

Genome = jax.Array | np.ndarray
BIT_DECISIONS = ("pointwise_weights", "pointwise_inputs", "depthwise_weights", "depthwise_inputs")


class Stage(NamedTuple):
    """A run of `shallowest` to `deepest` blocks with equal output channels; the first block has the stride."""

    channels: int
    stride: int
    shallowest: int = 2
    deepest: int = 4


class Block(NamedTuple):
    """A block of the largest network.

    Attributes:
      name: such as `stage1_block2`.
      stage: index of its stage.
      place: position in the stage, from 0; the block is skipped if the depth of the stage is not larger.
      in_channels, out_channels, stride: of the block.
      size: height and width of its input.
      channels: the numbers of expanded channels to choose from, ascending.
    """

    name: str
    stage: int
    place: int
    in_channels: int
    out_channels: int
    stride: int
    size: int
    channels: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class ArchitectureSpace:
    """A family of networks, each described by a genome, int32[D] (`network_space.NetworkSpace`).

    Attributes:
      image: height and width of the images.
      classes: number of classes.
      image_channels: 3 for colour images, 1 for grey ones.
      stem, stem_stride: output channels and stride of the first convolution, 3×3.
      first: output channels of the block without expansion.
      stages: the elastic stages.
      head: output channels of the last convolution.
      kernels, bits: kernel sizes and bit widths to choose from, ascending.
      expansion: smallest and largest expansion factor of a block (4 and 6 in APQ, §3.1).
      channel_step: difference between successive numbers of expanded channels (8 in APQ, §3.1).
      excluded: (kernel size, bits of depthwise inputs) that must not occur together, as in the authors' release.
    """

    image: int
    classes: int
    stages: tuple[Stage, ...]
    stem: int
    stem_stride: int
    first: int
    head: int
    image_channels: int = 3
    kernels: tuple[int, ...] = (3, 5, 7)
    bits: tuple[int, ...] = (4, 6, 8)
    expansion: tuple[int, int] = (4, 6)
    channel_step: int = 8
    excluded: tuple[int, int] = (7, 4)

    @functools.cached_property
    def blocks(self) -> tuple[Block, ...]:
        """All blocks, from first to last."""
        blocks = []
        in_channels, size = self.first, _strided(self.image, self.stem_stride)
        for number, stage in enumerate(self.stages):
            for place in range(stage.deepest):
                stride = stage.stride if place == 0 else 1
                fewest, most = (factor * in_channels for factor in self.expansion)
                channels = tuple(range(fewest, most + 1, self.channel_step))
                name = f"stage{number + 1}_block{place + 1}"
                blocks.append(Block(name, number, place, in_channels, stage.channels, stride, size, channels))
                in_channels, size = stage.channels, _strided(size, stride)
        return tuple(blocks)

    @functools.cached_property
    def search_space(self) -> SearchSpace:
        """The D decisions: a depth for each stage with a choice of depths, and six decisions for each block."""
        decisions = [
            Decision(_depth(number), tuple(map(str, range(stage.shallowest, stage.deepest + 1))))
            for number, stage in enumerate(self.stages)
            if stage.deepest > stage.shallowest
        ]
        bits = tuple(f"int{bits}" for bits in self.bits)
        for block in self.blocks:
            decisions.append(Decision(f"{block.name}.kernel", tuple(map(str, self.kernels))))
            decisions.append(Decision(f"{block.name}.channels", tuple(map(str, block.channels))))
            decisions += [Decision(f"{block.name}.{name}", bits) for name in BIT_DECISIONS]
        return SearchSpace(tuple(decisions))

    @functools.cached_property
    def group(self) -> np.ndarray:
        """int32[D]: a number per block or depth; options of decisions with different numbers combine freely."""
        return network_space.groups_by_part(self.search_space)

    @functools.cached_property
    def largest(self) -> np.ndarray:
        """int32[D]: the genome of the largest network, the last option of each decision."""
        return self.search_space.option_counts - 1

    @functools.cached_property
    def smallest(self) -> np.ndarray:
        """int32[D]: the genome of the smallest network, the first option of each decision, made valid."""
        genome = np.zeros(len(self.search_space), np.int32)
        return np.asarray(self.made_valid(genome))

    @functools.cached_property
    def _columns(self) -> dict[str, np.ndarray]:
        """Positions in a genome of each kind of block decision, int32[blocks] by name."""
        names = ("kernel", "channels", *BIT_DECISIONS)
        index = self.search_space.index
        return {name: np.asarray([index(f"{b.name}.{name}") for b in self.blocks], np.int32) for name in names}

    def options(self, genome: Genome, name: str) -> Any:
        """int32[..., blocks]: the option of each block for `name`: `kernel`, `channels` or one of `BIT_DECISIONS`."""
        return genome[..., self._columns[name]]

    def active(self, genome: Genome) -> jax.Array:
        """bool[..., blocks]: which blocks are not skipped."""
        depths: list[Any] = []
        for block in self.blocks:
            stage = self.stages[block.stage]
            if block.place < stage.shallowest:
                depths.append(jnp.ones(genome.shape[:-1], bool))
            else:
                option = genome[..., self.search_space.index(_depth(block.stage))]
                depths.append(option >= block.place - stage.shallowest + 1)
        return jnp.stack(depths, axis=-1)

    def is_valid(self, genome: Genome) -> Any:
        """bool[...]: whether no block, skipped or not, has the excluded pair."""
        return ~self._excluded(genome).any(axis=-1)

    def _excluded(self, genome: Genome) -> Any:
        kernel, bits = self.excluded
        if kernel not in self.kernels or bits not in self.bits:
            return jnp.zeros((*genome.shape[:-1], len(self.blocks)), bool)
        has_kernel = self.options(genome, "kernel") == self.kernels.index(kernel)
        return has_kernel & (self.options(genome, "depthwise_inputs") == self.bits.index(bits))

    def made_valid(self, genome: Genome) -> jax.Array:
        """The genome with the next wider bits of depthwise inputs wherever a block has the excluded pair."""
        columns = self._columns["depthwise_inputs"]
        genome = jnp.asarray(genome)
        return genome.at[..., columns].add(self._excluded(genome).astype(genome.dtype))

    def sample(self, key: jax.Array) -> jax.Array:
        """A uniformly random genome, int32[D], with kernel and depthwise input bits drawn among the valid pairs."""
        keys = jax.random.split(key)
        genome = jax.random.randint(keys[0], (len(self.search_space),), 0, jnp.asarray(self.search_space.option_counts))
        pairs = jnp.asarray(
            [
                (kernel, bits)
                for kernel in range(len(self.kernels))
                for bits in range(len(self.bits))
                if (self.kernels[kernel], self.bits[bits]) != self.excluded
            ],
            genome.dtype,
        )
        drawn = pairs[jax.random.randint(keys[1], (len(self.blocks),), 0, len(pairs))]
        genome = genome.at[self._columns["kernel"]].set(drawn[:, 0])
        return genome.at[self._columns["depthwise_inputs"]].set(drawn[:, 1])

    def with_formats(self, genome: Genome, formats_of: Genome) -> jax.Array:
        """The genome with all bit widths of the genome `formats_of`; the result may need `made_valid`."""
        columns = np.concatenate([self._columns[name] for name in BIT_DECISIONS])
        return jnp.asarray(genome).at[..., columns].set(formats_of[..., columns])

    def canonical(self, genome: Genome) -> jax.Array:
        """The genome with skipped blocks set as in the smallest network, so that equal networks have equal genomes."""
        active = jnp.ones(genome.shape, bool)
        for columns in self._columns.values():
            active = active.at[..., columns].set(self.active(genome))
        return jnp.where(active, genome, self.smallest)

    @functools.cached_property
    def _features(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Decision, option and block of each feature, int32[F] each."""
        rows = []
        for names in (("kernel",), ("channels",), BIT_DECISIONS):
            for number, block in enumerate(self.blocks):
                for name in names:
                    decision = self.search_space.index(f"{block.name}.{name}")
                    options = len(self.search_space.decisions[decision].options)
                    rows += [(decision, option, number) for option in range(options)]
        decision, option, block = np.asarray(rows, np.int32).T
        return decision, option, block

    @property
    def architecture_features(self) -> int:
        """Number of features that precede those of the bits: the input of the float predictor."""
        return len(self._features[0]) - len(BIT_DECISIONS) * len(self.blocks) * len(self.bits)

    def features(self, genome: Genome) -> jax.Array:
        """One-hot encoding, float32[..., F]: kernels, channels, then bits; zeros for skipped blocks (APQ, §3.2)."""
        decision, option, block = self._features
        chosen = genome[..., decision] == option
        return (chosen & self.active(genome)[..., block]).astype(jnp.float32)

    def network(self, genome: Genome) -> BlockNetwork:
        """The network that a genome, int32[D], describes; skipped blocks are left out."""
        genome = np.asarray(genome)
        kernels, channels = self.options(genome, "kernel"), self.options(genome, "channels")
        shapes = zip(self.blocks, kernels, channels, np.asarray(self.active(genome)), strict=True)
        return BlockNetwork(
            classes=self.classes,
            stem=self.stem,
            stem_stride=self.stem_stride,
            first=self.first,
            blocks=tuple(
                BlockShape(block.name, block.channels[inside], block.out_channels, self.kernels[kernel], block.stride)
                for block, kernel, inside, is_active in shapes
                if is_active
            ),
            head=self.head,
        )

    def settings(self, genome: Genome) -> dict[str, Any]:
        """The settings from which `fliqs_jax.models.create` makes the network of a genome, int32[D]."""
        return inverted_residuals.settings_of(self.network(genome))

    @functools.cached_property
    def family(self) -> Family:
        """The networks as a family, whose genomes are those of this space: bits shape no layer."""
        layers: list[ElasticLayer] = []
        for block in self.blocks:
            stage = self.stages[block.stage]
            skipped_at = block.place - stage.shallowest + 1
            layers += elastic_layers(
                block.name,
                inside=Channels((f"{block.name}.channels",), (block.channels,)),
                expands=True,
                kernel=f"{block.name}.kernel",
                gate=Gate(_depth(block.stage), skipped_at) if skipped_at > 0 else None,
            )
        largest = self.network(self.largest)
        return Family(
            space=self.search_space,
            largest=largest,
            layers=tuple(layers),
            network=self.network,
            settings=self.settings,
            base=self.largest,
            kernel_sizes=kernel_sizes.NESTED,
        )

    @functools.cached_property
    def layers(self) -> Workload:
        """The layers of the largest network, in the order in which they run."""
        return workload.trace(self.family.largest, self.example_shape, train=False)

    @property
    def base_layers(self) -> Workload:
        """The layers that a format as a unit stands for: those of the largest network."""
        return self.layers

    @property
    def example_shape(self) -> tuple[int, ...]:
        """Of an image."""
        return (self.image, self.image, self.image_channels)

    @functools.cached_property
    def formats(self) -> tuple[LayerFormat, ...]:
        """All pairs of weight and input bits."""
        names = [f"int{bits}" for bits in self.bits]
        return tuple(format_pair(weights, inputs) for weights in names for inputs in names)

    @functools.cached_property
    def _bits(self) -> dict[str, tuple[str, str]]:
        """The decisions on the bits of weights and inputs, by the path of each layer that has them."""
        found = {}
        for layer in self.family.layers:
            block, part, _ = layer.path.split("/")
            kind = "depthwise" if part == "depthwise" else "pointwise"
            found[layer.path] = (f"{block}.{kind}_weights", f"{block}.{kind}_inputs")
        return found

    @functools.cached_property
    def _bit_columns(self) -> np.ndarray:
        """int32[L, 2]: positions in a genome of the bits of each layer's weights and inputs; −1 in fixed layers."""
        index = self.search_space.index
        decisions = [self._bits.get(layer.path, ()) for layer in self.layers]
        return np.asarray([[index(name) for name in names] or (-1, -1) for names in decisions], np.int32)

    def format_choice(self, genome: jax.Array) -> jax.Array:
        """Index into `formats` of each layer, int32[L]: a pair of its block, or the widest in fixed layers."""
        options = genome[self._bit_columns]
        pairs = options[:, 0] * len(self.bits) + options[:, 1]
        return jnp.where(self._bit_columns[:, 0] < 0, len(self.formats) - 1, pairs)

    def family_genome(self, genome: Genome) -> np.ndarray:
        """The genome itself, since the family has all decisions."""
        return np.asarray(genome)

    def named(self, genome: Genome) -> genome_file.Genome:
        """The genome with the settings of its network; granularities are for the run that fine-tunes it."""
        skipped = {block.name for block, there in zip(self.blocks, self.active(genome), strict=True) if not there}
        choice = np.asarray(self.format_choice(jnp.asarray(genome)))
        layers = {
            layer.path: LayerChoice(self.formats[index].name, granularity="")
            for layer, index in zip(self.layers, choice, strict=True)
            if layer.path.split("/")[0] not in skipped
        }
        return genome_file.Genome(self.search_space.decode(np.asarray(genome)), layers, self.settings(genome))

    def encode(self, named: genome_file.Genome) -> np.ndarray:
        """The genome, int32[D], of a genome file of APQ.

        Raises:
          GenomeFileError: it is of another space.
        """
        if missing := [each.name for each in self.search_space.decisions if each.name not in named.choices]:
            raise GenomeFileError(f"a genome of another search space: it has no {missing[0]}")
        try:
            return self.search_space.encode(named.choices)
        except ValueError as error:
            raise GenomeFileError(f"a genome of another search space: {error}") from error

    @property
    def fixed_layers(self) -> Workload:
        """The layers that all networks share: stem, block without expansion, head, classifier."""
        searched = {layer.path for layer in self.family.layers}
        return tuple(layer for layer in self.layers if layer.path not in searched)

    def cost_table(self, model: CostModel) -> CostTable:
        """The lookup table of costs (APQ, §3.3): a term for all fixed layers, at the widest bits, and two per block.

        Raises:
          ValueError: the model cannot price a layer, or is a mean over layers, whose number depends on the genome.
        """
        if model.total == "mean":
            raise ValueError("a mean over layers cannot be searched by: the number of layers is searched as well")

        @functools.cache
        def cost(layer: LayerSpec | None) -> np.ndarray:
            costs = np.zeros(len(self.formats)) if layer is None else model.layer_costs(layer, self.formats)
            return np.asarray(costs, np.float64).reshape(len(self.bits), len(self.bits))

        combine = np.maximum if model.total == "peak" else np.add
        fixed = functools.reduce(combine, [cost(layer)[-1, -1] for layer in self.fixed_layers])
        values: dict[tuple[str, ...], np.ndarray] = {(): fixed}
        for layer in self.layers:
            if (found := elastic.variants(self.family, layer)) is None:
                continue
            decisions = (*found.decisions, *self._bits[layer.path])
            # Layers of equal shapes cost the same.
            costs = found.spread([cost(spec and dataclasses.replace(spec, path="")) for spec in found.specs])
            values[decisions] = combine(values[decisions], costs) if decisions in values else costs
        terms = [Term(decisions, costs) for decisions, costs in values.items()]
        return pricing.build(self.search_space, terms, peak=model.total == "peak")


def _depth(stage: int) -> str:
    return f"stage{stage + 1}.depth"


def _strided(size: int, stride: int) -> int:
    return math.ceil(size / stride)
