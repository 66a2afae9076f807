"""Networks of inverted residual blocks as plain Flax: the largest one, which holds all others, and smaller ones."""

import pathlib
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from apq_jax.architectures import ArchitectureSpace, find
from fliqs_jax.models.blocks import ConvNorm, InvertedResidual
from hwcost.genome_file import GenomeFileError, read_genome


class BlockShape(NamedTuple):
    """A block: its name, channels inside and out of it, the kernel of its depthwise convolution, and its stride."""

    name: str
    inside: int
    channels: int
    kernel: int
    stride: int


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
        conv = partial(ConvNorm, activation=nn.relu6)
        x = conv(self.stem, stride=self.stem_stride, name="stem")(x, train=train)
        x = conv(self.stem, groups=self.stem, name="first_depthwise")(x, train=train)
        x = conv(self.first, (1, 1), activation=None, name="first_project")(x, train=train)
        for shape in self.blocks:
            block = InvertedResidual(shape.channels, shape.inside, shape.kernel, shape.stride, name=shape.name)
            x = block(x, train=train)
        x = conv(self.head, (1, 1), name="head")(x, train=train)
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
