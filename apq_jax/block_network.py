"""Networks of inverted residual blocks as plain Flax: the largest one, which holds all others, and smaller ones."""

import pathlib
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from apq_jax.architectures import ArchitectureSpace, find
from fliqs_jax.models import fast_convolution
from hwcost.genome_file import GenomeFileError, read_genome


class BlockShape(NamedTuple):
    """A block: its name, channels inside and out of it, the kernel of its depthwise convolution, and its stride."""

    name: str
    inside: int
    channels: int
    kernel: int
    stride: int


class ConvNorm(nn.Module):
    """A convolution without bias, batch normalisation, and ReLU6 unless it is `linear`."""

    channels: int
    kernel: int = 1
    stride: int = 1
    depthwise: bool = False
    linear: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """float32[B, H, W, C] → float32[B, ⌈H / stride⌉, ⌈W / stride⌉, channels]."""
        x = nn.Conv(
            self.channels,
            (self.kernel, self.kernel),
            (self.stride, self.stride),
            padding=[(self.kernel // 2, self.kernel // 2)] * 2,
            feature_group_count=x.shape[-1] if self.depthwise else 1,
            use_bias=False,
            conv_general_dilated=fast_convolution.conv_general_dilated,
            kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
            name="conv",
        )(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm")(x)
        return x if self.linear else nn.relu6(x)


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, projection; a shortcut where shapes agree (Sandler et al., 2018)."""

    shape: BlockShape

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """float32[B, H, W, C] → float32[B, ⌈H / stride⌉, ⌈W / stride⌉, channels]."""
        shape = self.shape
        y = ConvNorm(shape.inside, name="expand")(x, train=train)
        y = ConvNorm(shape.inside, shape.kernel, shape.stride, depthwise=True, name="depthwise")(y, train=train)
        y = ConvNorm(shape.channels, linear=True, name="project")(y, train=train)
        return x + y if x.shape == y.shape else y


class BlockNetwork(nn.Module):
    """Stem, a block without expansion, blocks, head and classifier."""

    classes: int
    stem: int
    stem_stride: int
    first: int
    blocks: tuple[BlockShape, ...]
    head: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Logits, float32[B, classes], of images, float32[B, H, W, C]."""
        x = ConvNorm(self.stem, 3, self.stem_stride, name="stem")(x, train=train)
        x = ConvNorm(self.stem, 3, depthwise=True, name="first_depthwise")(x, train=train)
        x = ConvNorm(self.first, linear=True, name="first_project")(x, train=train)
        for shape in self.blocks:
            x = InvertedResidual(shape, name=shape.name)(x, train=train)
        x = ConvNorm(self.head, name="head")(x, train=train)
        return nn.Dense(self.classes, name="classifier")(jnp.mean(x, axis=(1, 2)))


def block_shapes(space: ArchitectureSpace, genome: np.ndarray) -> tuple[BlockShape, ...]:
    """The blocks of the network that a genome, int32[D], describes; skipped ones are left out."""
    kernels, channels = (np.asarray(space.options(genome, name)) for name in ("kernel", "channels"))
    return tuple(
        BlockShape(block.name, block.channels[inside], block.out_channels, space.kernels[kernel], block.stride)
        for block, kernel, inside, active in zip(
            space.blocks, kernels, channels, np.asarray(space.active(genome)), strict=True
        )
        if active
    )


def from_genome(genome: str) -> BlockNetwork:
    """The network of a genome file that APQ wrote: what a run names as its model.

    Raises:
      GenomeFileError: a file that cannot be read, or whose architecture was not searched.
      ValueError: a space that there is not, or choices that do not fit it.
    """
    named = read_genome(pathlib.Path(genome))
    if set(named.architecture) != {"space", "image_size"}:
        raise GenomeFileError(f"{genome} says of the architecture {named.architecture}: expected space and image_size")
    space = find(named.architecture["space"], named.architecture["image_size"])
    return network(space, space.search_space.encode(named.choices))


def network(space: ArchitectureSpace, genome: np.ndarray) -> BlockNetwork:
    """The network that a genome, int32[D], describes."""
    return BlockNetwork(
        classes=space.classes,
        stem=space.stem,
        stem_stride=space.stem_stride,
        first=space.first,
        blocks=block_shapes(space, np.asarray(genome)),
        head=space.head,
    )
