"""MobileNetV2 (Sandler et al., 2018)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fliqs_jax.models.blocks import ConvNorm, InvertedResidual, scaled_channels

# Expansion, channels, blocks, stride of the first block (Table 2).
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class MobileNetV2(nn.Module):
    """MobileNetV2 at any width.

    Attributes:
      classes: of the classifier.
      width: factor on all channels; the head has 1,280 at least.
      small_images: the stem and the second stage have no stride, for images of 32 pixels.
    """

    classes: int
    width: float = 1.0
    small_images: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Logits, float32[B, classes], of images, float32[B, H, W, C]."""
        stem_stride = 1 if self.small_images else 2
        x = ConvNorm(scaled_channels(32 * self.width), stride=stem_stride, activation=nn.relu6, name="stem")(
            x, train=train
        )
        for stage, (expansion, channels, blocks, stride) in enumerate(STAGES):
            strided = stride if not (self.small_images and stage == 1) else 1
            for block in range(blocks):
                x = InvertedResidual(
                    scaled_channels(channels * self.width),
                    None if expansion == 1 else x.shape[-1] * expansion,
                    stride=strided if block == 0 else 1,
                    name=f"stage{stage + 1}_block{block + 1}",
                )(x, train=train)
        x = ConvNorm(scaled_channels(1280 * max(1.0, self.width)), (1, 1), activation=nn.relu6, name="head")(
            x, train=train
        )
        return nn.Dense(self.classes, name="classifier")(jnp.mean(x, axis=(1, 2)))
