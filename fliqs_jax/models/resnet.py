"""ResNets for small images (He et al., 2015, §4.2): depth 6n + 2, three stages."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

STAGES = 3


class ResidualBlock(nn.Module):
    """Residual block: two 3×3 convolutions, and a shortcut with a 1×1 convolution where the shape changes."""

    channels: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """float32[B, H, W, C] → float32[B, ⌈H / stride⌉, ⌈W / stride⌉, channels]."""
        conv = partial(nn.Conv, use_bias=False, kernel_init=nn.initializers.he_normal())
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9)
        stride = (self.stride, self.stride)

        y = conv(self.channels, (3, 3), stride, name="conv1")(x)
        y = nn.relu(norm(name="norm1")(y))
        y = conv(self.channels, (3, 3), name="conv2")(y)
        y = norm(name="norm2")(y)
        if x.shape != y.shape:
            x = conv(self.channels, (1, 1), stride, name="shortcut")(x)
            x = norm(name="shortcut_norm")(x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """CIFAR ResNet of depth 6n + 2, whose three stages have width, 2 · width and 4 · width channels."""

    classes: int
    depth: int = 20
    width: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.depth < 8 or (self.depth - 2) % 6:
            raise ValueError(f"depth {self.depth}: expected 6n + 2, that is 8, 14, 20, …")
        if self.width < 1 or self.width != int(self.width):
            raise ValueError(f"width {self.width}: expected the first stage's channels, a whole number, as in 16")

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Logits, float32[B, classes], of images, float32[B, H, W, C]."""
        x = nn.Conv(self.width, (3, 3), use_bias=False, kernel_init=nn.initializers.he_normal(), name="stem")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9, name="stem_norm")(x))
        for stage in range(STAGES):
            for block in range((self.depth - 2) // 6):
                stride = 2 if stage > 0 and block == 0 else 1
                x = ResidualBlock(self.width * 2**stage, stride, name=f"stage{stage + 1}_block{block + 1}")(
                    x, train=train
                )
        x = jnp.mean(x, axis=(1, 2))
        return nn.Dense(self.classes, name="classifier")(x)
