"""ResNet-18, 34 and 50 (He et al., 2015); bottlenecks stride in their 3×3 convolution (v1.5)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fliqs_jax.models.blocks import ConvNorm

STAGES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
BOTTLENECK_EXPANSION = 4


class Residual(nn.Module):
    """Residual block: two 3×3 convolutions or a bottleneck, and a shortcut that has a 1×1 convolution if `project`."""

    channels: int
    stride: int
    bottleneck: bool
    project: bool

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """float32[B, H, W, C] → float32[B, ⌈H / stride⌉, ⌈W / stride⌉, channels], 4 · channels for a bottleneck."""
        out = self.channels * (BOTTLENECK_EXPANSION if self.bottleneck else 1)
        if self.bottleneck:
            y = ConvNorm(self.channels, (1, 1), name="conv1")(x, train=train)
            y = ConvNorm(self.channels, stride=self.stride, name="conv2")(y, train=train)
            y = ConvNorm(out, (1, 1), activation=None, name="conv3")(y, train=train)
        else:
            y = ConvNorm(out, stride=self.stride, name="conv1")(x, train=train)
            y = ConvNorm(out, activation=None, name="conv2")(y, train=train)
        if self.project:
            x = ConvNorm(out, (1, 1), self.stride, activation=None, name="shortcut")(x, train=train)
        return nn.relu(x + y)


class ImageNetResNet(nn.Module):
    """ResNet of four stages.

    Attributes:
      classes: number of classes.
      depth: 18, 34 or 50.
      width: factor on all channels, including the stem.
      small_images: whether the stem is a 3×3 convolution without stride and pooling, for images of 32 pixels.
      project_first: whether the first stage has a projection shortcut although shapes agree, as in the networks of the
        FLIQS paper; torchvision has none there.
    """

    classes: int
    depth: int
    width: float = 1.0
    small_images: bool = False
    project_first: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Logits, float32[B, classes], of images, float32[B, H, W, C]."""
        bottleneck = self.depth >= 50
        kernel, stride = ((3, 3), 1) if self.small_images else ((7, 7), 2)
        x = ConvNorm(int(64 * self.width), kernel, stride, name="stem")(x, train=train)
        if not self.small_images:
            x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        for stage, blocks in enumerate(STAGES[self.depth]):
            for block in range(blocks):
                first = block == 0 and (stage > 0 or bottleneck or self.project_first)
                x = Residual(
                    channels=int(64 * self.width * 2**stage),
                    stride=2 if stage > 0 and block == 0 else 1,
                    bottleneck=bottleneck,
                    project=first,
                    name=f"stage{stage + 1}_block{block + 1}",
                )(x, train=train)
        return nn.Dense(self.classes, name="classifier")(jnp.mean(x, axis=(1, 2)))
