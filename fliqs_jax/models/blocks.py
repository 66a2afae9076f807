"""What the networks are built of. Inputs are float32[B, H, W, C]; `train` says which batch statistics normalise."""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fliqs_jax.models import fast_convolution
from fliqs_jax.models.elastic import FIXED, Channels, ElasticLayer, Gate

Activation = Callable[[jax.Array], jax.Array]
Rate = Annotated[float, "from 0, below 1"]
"""The type of fields that say how often something is dropped in training."""


def drop_branches(y: jax.Array, rate: float, *, train: bool) -> jax.Array:
    """`y`, [B, …], the branch of a residual block, of which whole examples are dropped (Huang et al., 2016)."""
    return nn.Dropout(rate, broadcast_dims=tuple(range(1, y.ndim)), deterministic=not train)(y)


def scaled_channels(channels: float, multiple: int = 8) -> int:
    """The nearest multiple of 8, at least 8, and never less than 90 % of `channels` (Sandler et al., 2018)."""
    rounded = max(multiple, int(channels + multiple / 2) // multiple * multiple)
    return rounded + multiple if rounded < 0.9 * channels else rounded


class ConvNorm(nn.Module):
    """A convolution without bias, batch normalisation, and an activation if any.

    Padded by half the kernel on every side, as PyTorch's networks are, unless `padding` says otherwise.
    """

    channels: int
    kernel: tuple[int, int] = (3, 3)
    stride: int = 1
    groups: int = 1
    activation: Activation | None = nn.relu
    padding: str | None = None
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """→ float32[B, ⌈H / stride⌉, ⌈W / stride⌉, channels]."""
        x = nn.Conv(
            self.channels,
            self.kernel,
            (self.stride, self.stride),
            padding=self.padding or [(size // 2, size // 2) for size in self.kernel],
            feature_group_count=self.groups,
            use_bias=False,
            conv_general_dilated=fast_convolution.conv_general_dilated,
            kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
            name="conv",
        )(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=self.epsilon, name="norm")(x)
        return x if self.activation is None else self.activation(x)


class SqueezeExcite(nn.Module):
    """Scales channels by what their means say (Hu et al., 2018); both layers are 1×1 convolutions."""

    squeezed: int
    activation: Activation = nn.silu

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """→ the shape of `x`."""
        means = jnp.mean(x, axis=(1, 2), keepdims=True)
        hidden = self.activation(nn.Conv(self.squeezed, (1, 1), name="reduce")(means))
        return x * nn.sigmoid(nn.Conv(x.shape[-1], (1, 1), name="expand")(hidden))


def sum_of_prefixes(x: jax.Array, y: jax.Array) -> jax.Array:
    """The sum of two inputs; channels that only one has are added to nothing, so it is as wide as the wider."""
    missing = y.shape[-1] - x.shape[-1]
    if missing:
        narrow, wide = (x, y) if missing > 0 else (y, x)
        return wide + jnp.pad(narrow, [(0, 0)] * (x.ndim - 1) + [(0, abs(missing))])
    return x + y


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, squeeze-and-excitation if any, projection, and a shortcut.

    Sandler et al., 2018. `inside` is the number of channels between expansion and projection; None leaves the expansion
    out. There is a shortcut where shapes agree, or where `shortcut` says so (`sum_of_prefixes`). `drop` says how often
    the rest is dropped in training.
    """

    channels: int
    inside: int | None
    kernel: int = 3
    stride: int = 1
    squeeze: bool = False
    activation: Activation = nn.relu6
    epsilon: float = 1e-5
    shortcut: bool | None = None
    drop: Rate = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """→ float32[B, ⌈H / stride⌉, ⌈W / stride⌉, channels], or with a shortcut the channels of `x` if more."""
        conv = partial(ConvNorm, activation=self.activation, epsilon=self.epsilon)
        y = x
        if self.inside is not None:
            y = conv(self.inside, (1, 1), name="expand")(y, train=train)
        inside, size = y.shape[-1], (self.kernel, self.kernel)
        y = conv(inside, size, stride=self.stride, groups=inside, name="depthwise")(y, train=train)
        if self.squeeze:
            y = SqueezeExcite(max(1, x.shape[-1] // 4), self.activation, name="squeeze_excite")(y)
        y = conv(self.channels, (1, 1), activation=None, name="project")(y, train=train)
        shortcut = x.shape == y.shape if self.shortcut is None else self.shortcut
        return sum_of_prefixes(x, drop_branches(y, self.drop, train=train)) if shortcut else y


def elastic_layers(
    name: str,
    *,
    before: Channels = FIXED,
    inside: Channels,
    after: Channels = FIXED,
    expands: bool,
    kernel: str = "",
    gate: Gate | None = None,
) -> list[ElasticLayer]:
    """The layers of the `InvertedResidual` called `name` in a family.

    Args:
      name: of the block.
      before, inside, after: channels of its input, between expansion and projection, and of its projection.
      expands: whether it has an expansion.
      kernel: name of the decision of its kernel, if any.
      gate: when the block is there; its shortcut remains.
    """

    def layer(part: str, inputs: Channels, outputs: Channels, **more: Any) -> ElasticLayer:
        return ElasticLayer(f"{name}/{part}/conv", inputs, outputs, f"{name}/{part}/norm", gate=gate, **more)

    expansion = [layer("expand", before, inside)] if expands else []
    depthwise = layer("depthwise", inside, inside, kernel=kernel)
    return [*expansion, depthwise, layer("project", inside, after, ends_branch=True)]
