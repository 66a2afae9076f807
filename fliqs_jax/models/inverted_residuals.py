"""Networks of inverted residual blocks of any shapes, which APQ searches (APQ, §3.1)."""

from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from fliqs_jax.models.blocks import ConvNorm, InvertedResidual


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
