"""EfficientNet-B0 to B4 (Tan and Le, 2019)."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from fliqs_jax.models.blocks import ConvNorm, InvertedResidual, Rate, scaled_channels

# Expansion, kernel, stride, channels, blocks of B0 (Table 1).
STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
# Width, depth and image size of B0 … B4.
VARIANTS = ((1.0, 1.0, 224), (1.0, 1.1, 240), (1.1, 1.2, 260), (1.2, 1.4, 300), (1.4, 1.8, 380))


class EfficientNet(nn.Module):
    """EfficientNet.

    Attributes:
      classes: of the classifier.
      variant: 0 … 4, for B0 … B4.
      width: factor on channels beside the variant's own.
      small_images: the stem and the second stage have no stride, for images of 32 pixels.
      dropout: share of the classifier's inputs that is dropped in training.
      stochastic_depth: how often the branch of a block would be dropped after the last; of each in proportion.
    """

    classes: int
    variant: int = 0
    width: float = 1.0
    small_images: bool = False
    dropout: Rate = 0.0
    stochastic_depth: Rate = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Logits, float32[B, classes], of images, float32[B, H, W, C]."""
        width, depth, _ = VARIANTS[self.variant]
        width *= self.width
        stem_stride = 1 if self.small_images else 2
        x = ConvNorm(scaled_channels(32 * width), stride=stem_stride, activation=nn.silu, name="stem")(x, train=train)
        counts = [math.ceil(blocks * depth) for *_, blocks in STAGES]
        for stage, (expansion, kernel, stride, channels, _) in enumerate(STAGES):
            strided = stride if not (self.small_images and stage == 1) else 1
            for block in range(counts[stage]):
                x = InvertedResidual(
                    scaled_channels(channels * width),
                    None if expansion == 1 else x.shape[-1] * expansion,
                    kernel,
                    stride=strided if block == 0 else 1,
                    squeeze=True,
                    activation=nn.silu,
                    drop=self.stochastic_depth * (sum(counts[:stage]) + block) / sum(counts),
                    name=f"stage{stage + 1}_block{block + 1}",
                )(x, train=train)
        x = ConvNorm(4 * scaled_channels(320 * width), (1, 1), activation=nn.silu, name="head")(x, train=train)
        x = nn.Dropout(self.dropout, deterministic=not train)(jnp.mean(x, axis=(1, 2)))
        return nn.Dense(self.classes, name="classifier")(x)
