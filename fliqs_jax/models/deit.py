"""DeiT (Touvron et al., 2021): a vision transformer with patches of 16 pixels, without the distillation token."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from aqt_like.interception import Product
from fliqs_jax.models.blocks import Rate, drop_branches

NORM_EPSILON = 1e-6


class Attention(nn.Module):
    """Multi-head self-attention; one dense layer computes query, key and value."""

    heads: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """float32[B, T, C] → the same shape."""
        batch, tokens, channels = x.shape
        qkv = nn.Dense(3 * channels, name="qkv")(x).reshape(batch, tokens, 3, self.heads, channels // self.heads)
        query, key, value = jnp.moveaxis(qkv, 2, 0)
        scores = Product(name="scores")("bqhc,bkhc->bhqk", query, key) * (channels // self.heads) ** -0.5
        weights = nn.softmax(scores.astype(jnp.float32)).astype(scores.dtype)
        mixed = Product(name="mixture")("bhqk,bkhc->bqhc", weights, value)
        return nn.Dense(channels, name="projection")(mixed.reshape(x.shape))


class EncoderBlock(nn.Module):
    """Pre-norm transformer block: attention and a two-layer MLP, each with a residual connection."""

    heads: int
    drop: Rate = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """float32[B, T, C] → the same shape."""
        norm = partial(nn.LayerNorm, epsilon=NORM_EPSILON)
        branches = partial(drop_branches, rate=self.drop, train=train)
        x = x + branches(Attention(self.heads, name="attention")(norm(name="norm1")(x)))
        hidden = nn.Dense(4 * x.shape[-1], name="mlp1")(norm(name="norm2")(x))
        return x + branches(nn.Dense(x.shape[-1], name="mlp2")(nn.gelu(hidden, approximate=False)))


class DeiT(nn.Module):
    """A vision transformer.

    Attributes:
      classes: number of classes.
      channels: channels of a token at width 1.
      heads: number of attention heads at any width.
      width: factor on the channels.
      blocks: number of encoder blocks.
      patch: side of a patch in pixels.
      stochastic_depth: how often the branches of the last block are dropped in training; of others in proportion.
    """

    classes: int
    channels: int
    heads: int
    width: float = 1.0
    blocks: int = 12
    patch: int = 16
    stochastic_depth: Rate = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        channels = int(self.channels * self.width)
        if channels < self.heads or channels % self.heads:
            raise ValueError(f"width {self.width} gives {channels} channels: expected a multiple of {self.heads} heads")

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Logits, float32[B, classes], of images, float32[B, H, W, C], whose sides are multiples of the patch."""
        channels = int(self.channels * self.width)
        if x.shape[1] % self.patch or x.shape[2] % self.patch:
            raise ValueError(f"images of {x.shape[1]}×{x.shape[2]}: expected multiples of {self.patch}")
        size = (self.patch, self.patch)
        x = nn.Conv(channels, size, size, padding="VALID", name="patches")(x)
        x = x.reshape(x.shape[0], -1, channels)
        small = nn.initializers.truncated_normal(0.02)
        token = self.param("class_token", small, (1, 1, channels))
        x = jnp.concatenate([jnp.broadcast_to(token, (x.shape[0], 1, channels)).astype(x.dtype), x], axis=1)
        x = x + self.param("positions", small, (1, *x.shape[1:])).astype(x.dtype)
        for block in range(self.blocks):
            drop = self.stochastic_depth * block / max(self.blocks - 1, 1)
            x = EncoderBlock(self.heads, drop, name=f"block{block + 1}")(x, train=train)
        x = nn.LayerNorm(epsilon=NORM_EPSILON, name="norm")(x)
        return nn.Dense(self.classes, name="classifier")(x[:, 0])
