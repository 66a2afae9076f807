"""A residual network of four layers, so that tests of runs compile little: `config.model = {"name": NAME}`."""

import flax.linen as nn
import jax
import jax.numpy as jnp

NAME = "tests.tiny_network:make_network"


class _Block(nn.Module):
    channels: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        y = nn.Conv(self.channels, (3, 3), use_bias=False, name="conv1")(x)
        y = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm1")(y)
        return nn.relu(y + nn.Conv(self.channels, (1, 1), use_bias=False, name="shortcut")(x))


class _Network(nn.Module):
    classes: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = nn.relu(nn.Conv(4, (3, 3), use_bias=False, name="stem")(x))
        x = _Block(8, name="stage1_block1")(x, train=train)
        return nn.Dense(self.classes, name="classifier")(jnp.mean(x, axis=(1, 2)))


class _Dropping(nn.Module):
    classes: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        bright = (jnp.mean(x) > 0) * jnp.ones((3, 3, 1, 4))
        x = nn.Conv(4, (3, 3), mask=bright, name="stem")(x)
        return nn.Dense(self.classes, name="classifier")(jnp.mean(x, axis=(1, 2)))


def make_dropping_network(classes: int) -> nn.Module:
    """A network whose first kernel depends on its input, so that no file can hold it."""
    return _Dropping(classes)


def make_network(classes: int) -> nn.Module:
    return _Network(classes)
