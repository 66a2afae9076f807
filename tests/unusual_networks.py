"""Small networks with layers in loops, of unusual kinds, or with computations in no layer, for tests."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from aqt_like.interception import Product

OWN = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
SHARED = {"variable_axes": {"params": None}, "split_rngs": {"params": False}}


class Network(nn.Module):
    """A network made of a function; layers that it makes are its own."""

    function: object

    @nn.compact
    def __call__(self, x):
        return self.function(x)


def network(function):
    """A function of an input as a network that is made without arguments."""
    return functools.partial(Network, function)


class _Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.relu(nn.Dense(x.shape[-1], name="fc")(x)), None


class _Stage(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        x, _ = nn.scan(_Block, **OWN, length=3)(name="inner")(x, None)
        return nn.Dense(x.shape[-1], name="post")(x), None


class _Expert(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(8, name="down")(nn.relu(nn.Dense(32, name="up")(x)))
        return Product(name="scores")("tc,sc->ts", x, x)


class _TiedStep(nn.Module):
    @nn.compact
    def __call__(self, carry, token):
        embed = nn.Embed(100, 16, name="embed")
        return carry, embed.attend(nn.Dense(16, name="fc")(embed(token)))


class _OwnWeights(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x @ self.param("w", nn.initializers.ones, (x.shape[-1], 5))


def _looped(x):
    x, _ = nn.scan(_Block, **OWN, length=6)(name="blocks")(x, None)
    return nn.Dense(10, name="head")(x)


@network
def looped(x):
    """Six dense layers in a loop, and a head; any vectors."""
    return _looped(x)


@network
def nested(x):
    """Two times three layers in nested loops, and one in the outer loop; any vectors."""
    return nn.scan(_Stage, **OWN, length=2)(name="outer")(x, None)[0]


@network
def experts(x):
    """Four experts, each with two layers and a product; [B, T, C]."""
    mapped = nn.vmap(nn.vmap(_Expert, **SHARED), **OWN, in_axes=None, axis_size=4)
    return mapped(name="experts")(x).sum(0)


@network
def named(x):
    """Names with dots, brackets, digits and spaces; 8 values."""
    for name in ("features.0", "2", "a b", "fc(1)"):
        x = nn.Dense(8, name=name)(x)
    return _OwnWeights(name="features.1")(x)


def _kinds(x):
    plain = nn.Conv(32, (3, 3), name="plain")(x)
    same = nn.Conv(32, (3, 3), kernel_dilation=4, name="dilated")(x) + nn.ConvLocal(32, (3, 3), name="local")(x)
    inserted = nn.Conv(32, (3, 3), input_dilation=2, padding=((2, 1), (2, 1)), name="inserted")(plain + same)
    return inserted + nn.ConvTranspose(32, (3, 3), strides=(2, 2), name="transposed")(plain)


@network
def kinds(x):
    """Convolutions of every kind; images of 32 channels, from 8×8."""
    return _kinds(x)


@network
def twice(x):
    """A convolution that runs on an image and then on one of twice its side; [B, H, W, 8]."""
    conv = nn.Conv(8, (3, 3), name="conv")
    return conv(x[:, ::2, ::2]).mean((1, 2)) + conv(x).mean((1, 2))


@network
def frames(x):
    """Convolutions over the images of a film, with all frames in a call and with one in each; [B, T, H, W, C]."""
    x = nn.Conv(8, (3, 3), name="together")(x)
    return nn.vmap(nn.Conv, **SHARED, in_axes=1, out_axes=1)(4, (3, 3), name="each")(x)


@network
def assembled(x):
    """Layers of all kinds, in loops and with odd names; films of images of 3 channels, from 8×8."""
    x = nn.Conv(32, (3, 3), name="together")(x)
    x = _kinds(x[:, 0]).mean(1)  # [B, 16, 32]
    x = nn.vmap(nn.Dense, **OWN, in_axes=None, axis_size=2)(8, name="experts.0")(nn.relu(x)).sum(0)
    x = nn.Einsum((16, 8, 4), "btc,tcd->btd", name="einsum")(x)
    return _looped(x)


class UnknownToFlax(nn.Module):
    """A convolution in `jax.vmap`, of which Flax does not know; [B, T, H, W, C]."""

    def setup(self):
        self.conv = nn.Conv(8, (3, 3))

    def __call__(self, x):
        return self.conv(x[:, 0]) if self.is_initializing() else jax.vmap(self.conv, 1, 1)(x)


@network
def tied_head(x):
    """A head tied to the embedding; whole numbers."""
    embed = nn.Embed(32000, 64, name="embed")
    return embed.attend(nn.Dense(64, name="fc")(embed(x)))


@network
def tied_steps(x):
    """A head tied to the embedding, in a loop over tokens; whole numbers [B, T]."""
    loop = nn.scan(_TiedStep, variable_broadcast="params", split_rngs={"params": False}, in_axes=1, out_axes=1)
    return loop(name="decoder")(jnp.zeros(()), x)[1]


@network
def in_a_branch(x):
    """A layer in a branch of `nn.cond`, run twice in the other; 8 values."""
    x = nn.Dense(8, name="always")(x)
    return nn.cond(x.sum() > 0, lambda m, x: m(x), lambda m, x: m(m(x)), nn.Dense(8, name="branch"), x)


def recurrent(cell=nn.GRUCell):
    """A recurrent cell of 16 units over time, and a head; [B, T, C]."""
    return Network(lambda x: nn.Dense(10, name="head")(nn.RNN(cell(16), name="rnn")(x)[:, -1]))


@network
def attention(x):
    """Attention of 12 heads; [B, T, C]."""
    return nn.MultiHeadDotProductAttention(12, name="attention")(x)


@network
def expert_einsum(x):
    """Four experts in one einsum, with tokens of their own; [B, 4, T, 8]."""
    return nn.Einsum((4, 8, 16), "betc,ecd->betd", name="experts")(x)
