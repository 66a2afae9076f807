"""Inception-v3 (Szegedy et al., 2015) as in torchvision, without the auxiliary classifier."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fliqs_jax.models.blocks import ConvNorm, Rate

EPSILON = 1e-3


class _Block(nn.Module):
    """Base of the blocks with parallel branches; channels are the published ones times `width`."""

    width: float

    def conv(self, channels: int, kernel: tuple[int, int], name: str, *, stride: int = 1) -> ConvNorm:
        """Convolution of a branch; strided ones are not padded."""
        padding = "VALID" if stride > 1 else None
        return ConvNorm(max(1, int(channels * self.width)), kernel, stride, padding=padding, epsilon=EPSILON, name=name)

    def chain(self, x: jax.Array, train: bool, *convs: ConvNorm) -> jax.Array:
        """Applies convolutions in sequence."""
        for conv in convs:
            x = conv(x, train=train)
        return x


class InceptionA(_Block):
    """Block with the branches 1×1, 5×5, two 3×3, and pooling (Szegedy et al., Figure 5)."""

    pooled: int = 32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """float32[B, H, W, C] → float32[B, H, W, C']."""
        conv = self.conv
        branches = [
            self.chain(x, train, conv(64, (1, 1), "one")),
            self.chain(x, train, conv(48, (1, 1), "five1"), conv(64, (5, 5), "five2")),
            self.chain(x, train, conv(64, (1, 1), "double1"), conv(96, (3, 3), "double2"), conv(96, (3, 3), "double3")),
            self.chain(_average_pool(x), train, conv(self.pooled, (1, 1), "pool")),
        ]
        return jnp.concatenate(branches, axis=-1)


class InceptionB(_Block):
    """Reduction block from 35×35 to 17×17."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """float32[B, H, W, C] → float32[B, (H − 1) // 2, (W − 1) // 2, C']."""
        conv = self.conv
        double = [conv(64, (1, 1), "double1"), conv(96, (3, 3), "double2"), conv(96, (3, 3), "double3", stride=2)]
        branches = [
            self.chain(x, train, conv(384, (3, 3), "three", stride=2)),
            self.chain(x, train, *double),
            nn.max_pool(x, (3, 3), (2, 2)),
        ]
        return jnp.concatenate(branches, axis=-1)


class InceptionC(_Block):
    """Block with factorised 7×7 convolutions (Szegedy et al., Figure 6)."""

    inner: int = 128

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """float32[B, H, W, C] → float32[B, H, W, C']."""
        conv, inner = self.conv, self.inner
        seven = [conv(inner, (1, 1), "seven1"), conv(inner, (1, 7), "seven2"), conv(192, (7, 1), "seven3")]
        double = [
            conv(inner, (1, 1), "double1"),
            conv(inner, (7, 1), "double2"),
            conv(inner, (1, 7), "double3"),
            conv(inner, (7, 1), "double4"),
            conv(192, (1, 7), "double5"),
        ]
        branches = [
            self.chain(x, train, conv(192, (1, 1), "one")),
            self.chain(x, train, *seven),
            self.chain(x, train, *double),
            self.chain(_average_pool(x), train, conv(192, (1, 1), "pool")),
        ]
        return jnp.concatenate(branches, axis=-1)


class InceptionD(_Block):
    """Reduction block from 17×17 to 8×8."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """float32[B, H, W, C] → float32[B, (H − 1) // 2, (W − 1) // 2, C']."""
        conv = self.conv
        seven = [
            conv(192, (1, 1), "seven1"),
            conv(192, (1, 7), "seven2"),
            conv(192, (7, 1), "seven3"),
            conv(192, (3, 3), "seven4", stride=2),
        ]
        branches = [
            self.chain(x, train, conv(192, (1, 1), "three1"), conv(320, (3, 3), "three2", stride=2)),
            self.chain(x, train, *seven),
            nn.max_pool(x, (3, 3), (2, 2)),
        ]
        return jnp.concatenate(branches, axis=-1)


class InceptionE(_Block):
    """Block with branches that split into 1×3 and 3×1 (Szegedy et al., Figure 7)."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """float32[B, H, W, C] → float32[B, H, W, C']."""
        conv = self.conv
        three = conv(384, (1, 1), "three1")(x, train=train)
        double = self.chain(x, train, conv(448, (1, 1), "double1"), conv(384, (3, 3), "double2"))
        branches = [
            self.chain(x, train, conv(320, (1, 1), "one")),
            conv(384, (1, 3), "three2a")(three, train=train),
            conv(384, (3, 1), "three2b")(three, train=train),
            conv(384, (1, 3), "double3a")(double, train=train),
            conv(384, (3, 1), "double3b")(double, train=train),
            self.chain(_average_pool(x), train, conv(192, (1, 1), "pool")),
        ]
        return jnp.concatenate(branches, axis=-1)


def _average_pool(x: jax.Array) -> jax.Array:
    return nn.avg_pool(x, (3, 3), padding=((1, 1), (1, 1)))


class InceptionV3(nn.Module):
    """Inception-v3 at any width, for images of at least 75 pixels (published: 299), or smaller with `small_images`.

    Attributes:
      classes: number of classes.
      width: factor on all channels.
      small_images: whether the stem is without stride and pooling, for images of 32 pixels.
      dropout: share of the classifier's inputs that is dropped in training.
    """

    classes: int
    width: float = 1.0
    small_images: bool = False
    dropout: Rate = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Logits, float32[B, classes], of images, float32[B, H, W, C]."""

        stem_padding = None if self.small_images else "VALID"

        def conv(
            channels: int, kernel: int, name: str, stride: int = 1, padding: str | None = stem_padding
        ) -> ConvNorm:
            size = (kernel, kernel)
            return ConvNorm(
                max(1, int(channels * self.width)), size, stride, padding=padding, epsilon=EPSILON, name=name
            )

        def pool(x: jax.Array) -> jax.Array:
            return x if self.small_images else nn.max_pool(x, (3, 3), (2, 2))

        x = conv(32, 3, "stem1", 1 if self.small_images else 2)(x, train=train)
        x = conv(32, 3, "stem2")(x, train=train)
        x = pool(conv(64, 3, "stem3", padding=None)(x, train=train))
        x = conv(80, 1, "stem4")(x, train=train)
        x = pool(conv(192, 3, "stem5")(x, train=train))
        for i, pooled in enumerate((32, 64, 64)):
            x = InceptionA(self.width, pooled, name=f"a{i + 1}")(x, train=train)
        x = InceptionB(self.width, name="b")(x, train=train)
        for i, inner in enumerate((128, 160, 160, 192)):
            x = InceptionC(self.width, inner, name=f"c{i + 1}")(x, train=train)
        x = InceptionD(self.width, name="d")(x, train=train)
        for i in range(2):
            x = InceptionE(self.width, name=f"e{i + 1}")(x, train=train)
        x = nn.Dropout(self.dropout, deterministic=not train)(jnp.mean(x, axis=(1, 2)))
        return nn.Dense(self.classes, name="classifier")(x)
