"""The search space of APQ: depths, kernels, channels and bits of inverted residual blocks (APQ, §3.1 and §3.2).

A network is a stem, a block without expansion, stages of blocks, and a head. Each stage has a depth. Each block has a
kernel size, a number of expanded channels, and bit widths for the weights and the inputs of its pointwise and of its
depthwise convolutions. Blocks past the depth of their stage are skipped.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from aqt_like.formats import format_pair
from fliqs_jax.models import elastic
from fliqs_jax.models.blocks import elastic_layers
from fliqs_jax.models.elastic import Channels, ElasticLayer, Family, Gate
from fliqs_jax.models.inverted_residuals import BlockNetwork, BlockShape
from hwcost import pricing, workload
from hwcost.cost_model import CostModel
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
    """A family of networks, each described by a genome, int32[D].

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
        first_parts = [decision.name.split(".")[0] for decision in self.search_space.decisions]
        return np.unique(first_parts, return_inverse=True)[1].astype(np.int32)

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

    def with_bits(self, genome: Genome, bits_of: Genome) -> jax.Array:
        """The genome with all bit widths of the genome `bits_of`; the result may need `made_valid`."""
        columns = np.concatenate([self._columns[name] for name in BIT_DECISIONS])
        return jnp.asarray(genome).at[..., columns].set(bits_of[..., columns])

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
        return Family(self.search_space, largest, tuple(layers), self.network, self.largest, elastic.NESTED)

    @functools.cached_property
    def layers(self) -> Workload:
        """The layers of the largest network, in the order in which they run."""
        return workload.trace(self.family.largest, (self.image, self.image, self.image_channels), train=False)

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
        names = [f"int{bits}" for bits in self.bits]
        pairs = [format_pair(weights, inputs) for weights in names for inputs in names]

        @functools.cache
        def cost(layer: LayerSpec | None) -> np.ndarray:
            costs = np.zeros(len(pairs)) if layer is None else model.layer_costs(layer, pairs)
            return np.asarray(costs, np.float64).reshape(len(names), len(names))

        combine = np.maximum if model.total == "peak" else np.add
        fixed = functools.reduce(combine, [cost(layer)[-1, -1] for layer in self.fixed_layers])
        values: dict[tuple[str, ...], np.ndarray] = {(): fixed}
        for layer in self.layers:
            if (found := elastic.variants(self.family, layer)) is None:
                continue
            block, part, _ = layer.path.split("/")
            kind = "depthwise" if part == "depthwise" else "pointwise"
            decisions = (*found.decisions, f"{block}.{kind}_weights", f"{block}.{kind}_inputs")
            # Layers of equal shapes cost the same.
            costs = found.spread([cost(spec and dataclasses.replace(spec, path="")) for spec in found.specs])
            values[decisions] = combine(values[decisions], costs) if decisions in values else costs
        terms = [Term(decisions, costs) for decisions, costs in values.items()]
        return pricing.build(self.search_space, terms, peak=model.total == "peak")


def _depth(stage: int) -> str:
    return f"stage{stage + 1}.depth"


def _strided(size: int, stride: int) -> int:
    return math.ceil(size / stride)


def _stages(*rows: tuple[int, int, int, int]) -> tuple[Stage, ...]:
    return tuple(Stage(*row) for row in rows)


SPACES: Mapping[str, ArchitectureSpace] = {
    # APQ, §3.1 and §3.2: 21 blocks, images of 224 pixels.
    "paper": ArchitectureSpace(
        image=224,
        classes=1000,
        stages=_stages((24, 2, 2, 4), (40, 2, 2, 4), (80, 2, 2, 4), (96, 1, 2, 4), (192, 2, 2, 4), (320, 1, 1, 1)),
        stem=32,
        stem_stride=2,
        first=16,
        head=1280,
    ),
    # For CIFAR-10 at 32 pixels, or averaged to 16.
    "cifar": ArchitectureSpace(
        image=32,
        classes=10,
        stages=_stages((16, 1, 2, 3), (24, 2, 2, 3), (40, 2, 2, 3)),
        stem=16,
        stem_stride=1,
        first=8,
        head=160,
    ),
    # For scikit-learn's digits at 8 pixels.
    "digits": ArchitectureSpace(
        image=8,
        classes=10,
        image_channels=1,
        stages=_stages((8, 1, 1, 2), (16, 2, 1, 2)),
        stem=8,
        stem_stride=1,
        first=8,
        head=32,
        kernels=(3, 5),
        bits=(2, 4, 8),
    ),
}


def find(name: str, image: int = 0) -> ArchitectureSpace:
    """The space called `name`, for images of `image` pixels if that is not 0.

    Raises:
      ValueError: no space has that name.
    """
    if name not in SPACES:
        raise ValueError(f"space {name!r}: expected one of {', '.join(SPACES)}")
    return dataclasses.replace(SPACES[name], image=image) if image else SPACES[name]
