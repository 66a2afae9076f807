"""MobileNetV2 (Sandler et al., 2018), and the family of FLIQNAS around it (FLIQS, §6)."""

from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from fliqs_jax.models import elastic
from fliqs_jax.models.blocks import ConvNorm, InvertedResidual, Rate, elastic_layers, scaled_channels
from fliqs_jax.models.elastic import Channels, Choice, ElasticLayer, Family

# Expansion, channels, blocks, stride of the first block (Table 2).
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class Block(NamedTuple):
    """A block: its name, expansion, output channels before they are rounded, stride, and whether it has a shortcut."""

    name: str
    expansion: int
    channels: float
    stride: int
    shortcut: bool


class MobileNetV2(nn.Module):
    """MobileNetV2 at any width.

    Attributes:
      classes: of the classifier.
      width: factor on all channels; the head has its own at least.
      small_images: the stem and the second stage have no stride, for images of 32 pixels.
      stages: expansion, output channels, blocks and stride of the first block, of each stage.
      stem, head: output channels of the first and the last convolution.
      multiple: numbers of channels are multiples of it.
      widths: factor on the output channels of each block; empty for 1.
      kernels: size of the depthwise kernel of each block; empty for 3.
      dropout: share of the classifier's inputs that is dropped in training.
    """

    classes: int
    width: float = 1.0
    small_images: bool = False
    stages: tuple[tuple[int, int, int, int], ...] = STAGES
    stem: int = 32
    head: int = 1280
    multiple: int = 8
    widths: tuple[float, ...] = ()
    kernels: tuple[int, ...] = ()
    dropout: Rate = 0.0

    def blocks(self) -> tuple[Block, ...]:
        """All blocks, from first to last. A block has a shortcut where all widths of 1 give it equal channels."""
        blocks, before = [], self.rounded(self.stem * self.width)
        for number, (expansion, channels, count, stride) in enumerate(self.stages):
            strided = stride if not (self.small_images and number == 1) else 1
            for place in range(count):
                own_stride, after = strided if place == 0 else 1, self.rounded(channels * self.width)
                name = f"stage{number + 1}_block{place + 1}"
                shortcut = own_stride == 1 and before == after
                blocks.append(Block(name, expansion, channels * self.width, own_stride, shortcut))
                before = after
        return tuple(blocks)

    def rounded(self, channels: float) -> int:
        """A number of channels as the network has it."""
        return scaled_channels(channels, self.multiple)

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Logits, float32[B, classes], of images, float32[B, H, W, C]."""
        blocks = self.blocks()
        stem = ConvNorm(
            self.rounded(self.stem * self.width), stride=1 if self.small_images else 2, activation=nn.relu6, name="stem"
        )
        x = stem(x, train=train)
        for name, given in (("widths", self.widths), ("kernels", self.kernels)):
            if given and len(given) != len(blocks):
                raise ValueError(f"{name}={tuple(given)}: expected one for each of the {len(blocks)} blocks")
        widths, kernels = self.widths or (1.0,) * len(blocks), self.kernels or (3,) * len(blocks)
        for block, width, kernel in zip(blocks, widths, kernels, strict=True):
            x = InvertedResidual(
                self.rounded(block.channels * width),
                None if block.expansion == 1 else x.shape[-1] * block.expansion,
                kernel,
                block.stride,
                shortcut=block.shortcut,
                name=block.name,
            )(x, train=train)
        head = ConvNorm(self.rounded(self.head * max(1.0, self.width)), (1, 1), activation=nn.relu6, name="head")
        x = nn.Dropout(self.dropout, deterministic=not train)(jnp.mean(head(x, train=train), axis=(1, 2)))
        return nn.Dense(self.classes, name="classifier")(x)


def family(base: MobileNetV2, widths: Sequence[float] = (1.0,), kernels: Sequence[int] = (3,)) -> Family:
    """The networks like `base` in which each block chooses its width and its kernel (FLIQS, §6).

    Widths are factors on the channels that a block puts out; its expansion follows the channels that come in. A sum of
    unlike widths is as wide as the wider.

    Raises:
      ValueError: see `elastic.family_of_settings`.
    """
    if wrong := [size for size in kernels if not isinstance(size, int) or size % 2 == 0 or not 0 < size < 32]:
        raise ValueError(f"kernels={tuple(kernels)}: {wrong[0]}: expected odd whole numbers, up to 31")
    width, kernel = Choice("width", "widths", tuple(widths), 1.0), Choice("kernel", "kernels", tuple(kernels), 3)
    layers, before = [], Channels(least=base.rounded(base.stem * base.width))
    for block in base.blocks():
        after = width.channels(block.name, [base.rounded(block.channels * factor) for factor in widths])
        layers += elastic_layers(
            block.name,
            before=before,
            inside=before.times(block.expansion),
            after=after,
            expands=block.expansion > 1,
            kernel=kernel.decision(block.name),
        )
        before = before.or_wider(after) if block.shortcut else after
    layers.append(ElasticLayer("head/conv", before, norm="head/norm"))
    return elastic.family_of_settings(base, [block.name for block in base.blocks()], (width, kernel), layers)
