"""Networks of inverted residual blocks of any shapes, which APQ searches (APQ, §3.1)."""

from functools import partial
from typing import Any, NamedTuple

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
    """Stem, a block without expansion, blocks, head and classifier.

    Attributes:
      classes: of the classifier.
      stem, stem_stride, first, head: output channels of the first convolution, its stride, output channels of the block
        without expansion, and of the last convolution.
      blocks: the others, each the five values of a `BlockShape`.
    """

    classes: int
    stem: int = 32
    stem_stride: int = 2
    first: int = 16
    blocks: tuple[tuple[str, int, int, int, int], ...] = ()
    head: int = 1280

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Logits, float32[B, classes], of images, float32[B, H, W, C]."""
        conv = partial(ConvNorm, activation=nn.relu6)
        x = conv(self.stem, stride=self.stem_stride, name="stem")(x, train=train)
        x = conv(self.stem, groups=self.stem, name="first_depthwise")(x, train=train)
        x = conv(self.first, (1, 1), activation=None, name="first_project")(x, train=train)
        for shape in map(BlockShape._make, self.blocks):
            block = InvertedResidual(shape.channels, shape.inside, shape.kernel, shape.stride, name=shape.name)
            x = block(x, train=train)
        x = conv(self.head, (1, 1), name="head")(x, train=train)
        return nn.Dense(self.classes, name="classifier")(jnp.mean(x, axis=(1, 2)))


def settings_of(network: BlockNetwork) -> dict[str, Any]:
    """What `models.create` makes the network from, but for its classes, as JSON holds it."""
    sizes = {name: getattr(network, name) for name in ("stem", "stem_stride", "first", "head")}
    return {"name": "block_network", **sizes, "blocks": [list(shape) for shape in network.blocks]}
