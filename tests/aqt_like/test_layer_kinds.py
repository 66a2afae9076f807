"""Every kind of layer, traced, profiled, quantised, priced and searched, against arithmetic in NumPy.

One network holds all kinds as parallel branches, so that they share compilations. A member of the registry says how a
branch is built, what it computes, written again in NumPy for a float and a quantised pass alike, and what it costs.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

import aqt_like
from aqt_like import clip_multiples, format_choice, gradients, interception, layer_calls
from aqt_like.formats import FORMAT_SPACES, format_space, parse_format
from aqt_like.interception import Product, Quantizer
from fliqs_jax import fisher, losses
from fliqs_jax.models.call_finding import called
from fliqs_jax.policy import init_policy
from fliqs_jax.quality import accuracy
from fliqs_jax.search import Search, init_state, make_search_step
from hwcost import analytic, pricing, workload
from hwcost.format_plan import format_plan

# What layers compute, in NumPy.


def convolved(x, kernel, *, stride=1, dilation=1, pads=None, groups=1, input_dilation=1):
    """A convolution of `x`, [B, …, C], by sums over the positions of the kernel; `pads` are those of SAME if None."""
    rank = kernel.ndim - 2
    lead, x = x.shape[: -rank - 1], x.reshape(-1, *x.shape[-rank - 1 :])
    if input_dilation > 1:
        spread = np.zeros((len(x), *[(n - 1) * input_dilation + 1 for n in x.shape[1:-1]], x.shape[-1]))
        spread[(slice(None), *[slice(None, None, input_dilation)] * rank)] = x
        x = spread
    if pads is None:
        total = [(k - 1) * dilation for k in kernel.shape[:rank]]
        pads = [(n // 2, n - n // 2) for n in total]
    x = np.pad(x, [(0, 0), *pads, (0, 0)])
    sizes = [
        (n - (k - 1) * dilation - 1) // stride + 1 for n, k in zip(x.shape[1:-1], kernel.shape[:rank], strict=True)
    ]
    y = np.zeros((len(x), *sizes, kernel.shape[-1]))
    for position in np.ndindex(*kernel.shape[:rank]):
        window = tuple(
            slice(i * dilation, i * dilation + (n - 1) * stride + 1, stride)
            for i, n in zip(position, sizes, strict=True)
        )
        part = x[(slice(None), *window)]
        inside = np.split(part, groups, -1)
        outside = np.split(kernel[position], groups, -1)
        y += np.concatenate([a @ b for a, b in zip(inside, outside, strict=True)], -1)
    return y.reshape(*lead, *y.shape[1:])


def local(x, kernel):
    """An unshared 2 × 2 convolution without padding; the kernel's rows are channels, then positions."""
    height, width = kernel.shape[:2]
    y = np.zeros((len(x), height, width, kernel.shape[-1]))
    for i, j in np.ndindex(height, width):
        patch = np.moveaxis(x[:, i : i + 2, j : j + 2], -1, 1).reshape(len(x), -1)
        y[:, i, j] = patch @ kernel[i, j]
    return y


def einsum(equation):
    return lambda x, kernel: np.einsum(equation, x, kernel)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


# Quantisation in NumPy.


@functools.cache
def multiple_of(name):
    return np.float32(clip_multiples.precomputed_multiples([parse_format(name)])[0])


def codes(x, name, clip):
    """The codes of `x` and their scale: nearest values of the format, ties to even, saturating."""
    fmt = parse_format(name)
    x = np.asarray(x, np.float32)
    if name == "bf16":
        return np.asarray(x.astype(jnp.bfloat16), np.float64), 1.0
    scale = np.asarray(clip, np.float32) / np.float32(fmt.largest)
    units = np.abs(x / scale).astype(np.float64)
    values = fmt.magnitudes()
    above = np.searchsorted(values, units).clip(1, len(values) - 1)
    low, high = values[above - 1], values[above]
    tie_to_low = (units - low == high - units) & ((above - 1) % 2 == 0)
    nearest = np.where((units - low < high - units) | tie_to_low, low, high)
    negative = np.where(x < 0, -1.0 if fmt.lowest < 0 else 0.0, 1.0)
    return negative * nearest, scale.astype(np.float64)


@dataclasses.dataclass
class Pass:
    """A pass over the network in NumPy, in float or quantised.

    Attributes:
      params: the float parameters.
      formats: names of formats of weights and input, by path; in float if empty.
      profile: the profile of a float pass.
      inputs: what each layer has got, by path.
    """

    params: Any
    formats: dict[str, str] = dataclasses.field(default_factory=dict)
    profile: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    inputs: dict[str, list[np.ndarray]] = dataclasses.field(default_factory=dict)

    def entries(self, path):
        """Kernel and bias of a layer as they are stored, float32."""
        entry = self.params
        for name in layer_calls.split_repetition(path)[0].split("/"):
            entry = entry[name]
        return {key: np.asarray(value, np.float32) for key, value in nn.meta.unbox(dict(entry)).items()}

    def clip(self, name, x, axes=None):
        squares = np.square(np.asarray(x, np.float32))
        return multiple_of(name) * np.sqrt(np.mean(squares, axis=axes, keepdims=axes is not None))

    def layer(self, path, x, compute, outputs=(-1,), *, kernel=None, of_kernel=None, bias=None, of_bias=None):
        """A layer: `compute(x, kernel)` plus the bias, with one threshold for each index of the axes `outputs`."""
        self.inputs.setdefault(path, []).append(np.asarray(x, np.float32))
        entries = {} if kernel is not None and bias is not None else self.entries(path)
        kernel = entries["kernel"] if kernel is None else kernel
        kernel = kernel if of_kernel is None else of_kernel(kernel)
        bias = entries.get("bias", 0.0) if bias is None else bias
        bias = bias if of_bias is None else of_bias(bias)
        if path in self.formats:
            contracted = tuple(set(range(kernel.ndim)) - {axis % kernel.ndim for axis in outputs})
            kernel = self.dequantised(kernel, self.formats[path], self.clip(self.formats[path], kernel, contracted))
            x = self.quantised_input(path, x)
        return compute(np.asarray(x, np.float64), np.asarray(kernel, np.float64)) + bias

    def product(self, path, x, other, equation):
        self.inputs.setdefault(path, []).append(np.asarray(x, np.float32))
        if path in self.formats:
            other = self.dequantised(other, self.formats[path], self.clip(self.formats[path], other))
            x = self.quantised_input(path, x)
        return np.einsum(equation, x, other)

    def quantised_input(self, path, x):
        mean_square, smallest = self.profile[path]
        name = self.formats[path]
        name = parse_format(name).unsigned_twin.name if smallest >= 0 else name
        return self.dequantised(x, name, multiple_of(name) * np.sqrt(np.float32(mean_square)))

    def dequantised(self, x, name, clip):
        values, scale = codes(x, name, clip)
        return values * scale

    def profiles(self):
        return {
            path: (np.mean([np.mean(np.square(x, dtype=np.float64)) for x in calls]), min(x.min() for x in calls))
            for path, calls in self.inputs.items()
        }


# The registry.


@dataclasses.dataclass
class Member:
    """A kind of layer.

    Attributes:
      run: makes the branch within the network: `(image) -> output`.
      numpy: the same in NumPy: `(pass, image) -> output`.
      macs: MACs for one example by path, counted by hand; of the products too.
      tolerance: relative error of half-precision results.
    """

    run: Callable[[jax.Array], jax.Array]
    numpy: Callable[[Pass, np.ndarray], np.ndarray]
    macs: dict[str, int]
    tolerance: float = 2e-6


SIZE, CHANNELS = 4, 4
STORED = 0.5  # the statistics of the spectral norm
FRAMES = np.asarray([1, 2], np.float32).reshape(1, 2, 1, 1, 1)
MASK = np.asarray(np.arange(3 * 3 * 4 * 3).reshape(3, 3, 4, 3) % 5 > 0, np.float32)


def row(x):
    """A sequence: [B, 4, 4]."""
    return x[:, 1]


def vector(x):
    """A vector: [B, 4]."""
    return x[:, 2, 1]


def positive(x):
    return x * x


def single(module, numpy, macs, inputs=lambda x: x, outputs=(-1,), call=None, **settings):
    """The member of a single layer, which `module(name)` makes; its path is the name of the member."""

    def register(name):
        def run(x):
            layer = module(name=name)
            return layer(inputs(x)) if call is None else call(layer, inputs(x))

        tolerance = settings.pop("tolerance", 2e-6)
        return Member(run, lambda p, x: p.layer(name, inputs(x), numpy, outputs, **settings), {name: macs}, tolerance)

    return register


class Tailored(nn.Dense):
    """A subclass that calls its parent."""

    @nn.compact
    def __call__(self, inputs):
        return 2 * super().__call__(inputs + 1)


class Body(nn.Module):
    """The body of a loop: a layer between residuals."""

    @nn.compact
    def __call__(self, x, _=None):
        return x + nn.tanh(nn.Dense(4, name="mlp")(x)), None


class Inner(nn.Module):
    """A loop in a loop."""

    @nn.compact
    def __call__(self, x, _=None):
        return scanned(Body, 3)(name="inner")(x, None)[0], None


def scanned(body, length, axis=0):
    return nn.scan(body, variable_axes={"params": axis}, split_rngs={"params": True}, length=length)


class RematBody(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x + nn.tanh(nn.Dense(4, name="mlp")(x))


def residuals(name, shape, axis=0):
    """Member function of loops over `Body`; kernels have the repetitions at `axis`."""

    def numpy(p, x):
        y = vector(x)
        layer = layer_calls.split_repetition(f"{name}[0]")[0]
        stored = p.entries(layer)
        for index in np.ndindex(*shape):
            kernel = stored["kernel"][index] if axis == 0 else stored["kernel"].take(index[0], axis)
            bias = stored["bias"][index] if axis == 0 else stored["bias"].take(index[0], axis)
            path = layer_calls.repetition_path(name, index)
            y = y + np.tanh(p.layer(path, y, einsum("bc,cd->bd"), kernel=kernel, bias=bias))
        return y

    return numpy, dict.fromkeys(layer_calls.repetition_paths(name, shape), 16)


def looped(make, name, shape, axis=0):
    numpy, macs = residuals(name, shape, axis)
    return lambda member: Member(lambda x: make(member, vector(x)), numpy, macs)


def experts(p, x):
    stored = p.entries("experts")
    return np.stack(
        [
            p.layer(f"experts[{i}]", vector(x), einsum("bc,cd->bd"), kernel=stored["kernel"][i], bias=stored["bias"][i])
            for i in range(3)
        ]
    )


def twice(p, x):
    y = p.layer("twice", vector(x), einsum("bc,cd->bd"))
    return p.layer("twice", 3 * np.tanh(y), einsum("bc,cd->bd"))


def run_twice(x):
    shared = nn.Dense(4, name="twice")
    return shared(3 * nn.tanh(shared(vector(x))))


def attention(p, x):
    x = row(x)
    query, key, value = (
        p.layer(f"attention/{name}", x, einsum("btc,chd->bthd"), (1, 2)) for name in ("query", "key", "value")
    )
    scores = p.product("attention/scores", query / math.sqrt(2), key, "bqhd,bkhd->bhqk")
    mixed = p.product("attention/mixture", softmax(scores), value, "bhqk,bkhd->bqhd")
    return p.layer("attention/out", mixed, einsum("bthd,hdc->btc"))


def run_attention(x):
    return nn.MultiHeadDotProductAttention(
        num_heads=2,
        qk_attn_weights_einsum_cls=lambda: Product(name="scores"),
        attn_weights_value_einsum_cls=lambda: Product(name="mixture"),
        name="attention",
    )(row(x))


def lstm(p, x):
    x, gate = row(x), {}
    carry = hidden = np.zeros((len(x), 3))
    for step in range(x.shape[1]):
        for name in "ifgo":
            gate[name] = p.layer(f"lstm_cell/i{name}", x[:, step], einsum("bc,cd->bd"))
            gate[name] = gate[name] + p.layer(f"lstm_cell/h{name}", hidden, einsum("bc,cd->bd"))
        carry = sigmoid(gate["f"]) * carry + sigmoid(gate["i"]) * np.tanh(gate["g"])
        hidden = sigmoid(gate["o"]) * np.tanh(carry)
    return hidden


def gru(p, x):
    x = row(x)
    hidden = np.zeros((len(x), 3))

    def dense(name, value):
        return p.layer(f"gru_cell/{name}", value, einsum("bc,cd->bd"))

    for step in range(x.shape[1]):
        reset = sigmoid(dense("ir", x[:, step]) + dense("hr", hidden))
        update = sigmoid(dense("iz", x[:, step]) + dense("hz", hidden))
        new = np.tanh(dense("in", x[:, step]) + reset * dense("hn", hidden))
        hidden = (1 - update) * new + update * hidden
    return hidden


def spectral_norm(kernel):
    """One step of the power iteration from the stored vector."""
    v = kernel @ np.full(3, STORED)
    v = v / np.linalg.norm(v)
    u = v @ kernel
    return v @ kernel @ (u / np.linalg.norm(u))


def weight_norm(p, x):
    scale = np.asarray(p.params["wrapper"]["weight_norm/kernel/scale"])
    return p.layer(
        "weight_norm",
        vector(x),
        einsum("bc,cd->bd"),
        of_kernel=lambda k: k / np.sqrt((k**2).sum(0, keepdims=True)) * scale,
    )


@functools.cache
def members():
    dense = einsum("bc,cd->bd")
    convolution = functools.partial(functools.partial, nn.Conv)
    found = {
        "conv": single(convolution(5, (3, 3)), convolved, 16 * 9 * 4 * 5),
        "pointwise_unsigned": single(convolution(3, (1, 1)), convolved, 16 * 4 * 3, positive),
        "grouped": single(
            convolution(6, (3, 3), feature_group_count=2), functools.partial(convolved, groups=2), 16 * 9 * 2 * 6
        ),
        "depthwise": single(
            convolution(4, (3, 3), feature_group_count=4, use_bias=False),
            functools.partial(convolved, groups=4),
            16 * 9 * 4,
        ),
        "dilated": single(
            convolution(3, (2, 2), kernel_dilation=2, padding="VALID"),
            functools.partial(convolved, dilation=2, pads=[(0, 0)] * 2),
            4 * 4 * 4 * 3,
        ),
        "strided": single(
            convolution(3, (3, 3), strides=2, padding=((1, 0), (0, 1))),
            functools.partial(convolved, stride=2, pads=[(1, 0), (0, 1)]),
            4 * 9 * 4 * 3,
        ),
        "circular": single(
            convolution(3, (3, 3), padding="CIRCULAR"),
            lambda x, k: convolved(np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)], "wrap"), k, pads=[(0, 0)] * 2),
            16 * 9 * 4 * 3,
        ),
        "masked": single(convolution(3, (3, 3), mask=MASK), convolved, 16 * 9 * 4 * 3, of_kernel=lambda k: k * MASK),
        "line": single(convolution(3, (3,)), convolved, 4 * 3 * 4 * 3, row),
        "frames": single(convolution(3, (3, 3)), convolved, 2 * 16 * 9 * 4 * 3, lambda x: x[:, None] * FRAMES),
        "local": single(
            functools.partial(nn.ConvLocal, 3, (2, 2), padding="VALID"), local, 9 * 4 * 4 * 3, outputs=(0, 1, 3)
        ),
        "up": single(
            functools.partial(nn.ConvTranspose, 3, (2, 2), strides=(2, 2)),
            functools.partial(convolved, input_dilation=2, pads=[(1, 1)] * 2),
            16 * 4 * 4 * 3,
        ),
        "up_turned": single(
            functools.partial(nn.ConvTranspose, 3, (2, 2), strides=(2, 2), transpose_kernel=True),
            lambda x, k: convolved(x, k[::-1, ::-1].swapaxes(2, 3), input_dilation=2, pads=[(1, 1)] * 2),
            16 * 4 * 4 * 3,
            outputs=(2,),
        ),
        "dense": single(functools.partial(nn.Dense, 3), dense, 12, vector),
        "positions": single(functools.partial(nn.Dense, 3, use_bias=False), einsum("btc,cd->btd"), 48, row),
        "flat": single(
            functools.partial(nn.DenseGeneral, (2, 3), axis=(-2, -1)), einsum("btc,tchd->bhd"), 96, row, (2, 3)
        ),
        "batched": single(
            functools.partial(nn.DenseGeneral, (2, 2), axis=-1, batch_dims=(0,)),
            lambda x, k: np.einsum("tbc,tchd->tbhd", x, k),
            64,
            lambda x: row(x).swapaxes(0, 1),
            (0, 2, 3),
            of_bias=lambda b: b[:, None],
        ),
        "einsum_last": single(
            functools.partial(nn.Einsum, (3, 4), "btd,od->bto"), einsum("btd,od->bto"), 48, row, (0,)
        ),
        "einsum_ellipsis": single(
            functools.partial(nn.Einsum, (4, 2, 3), "...d,dhk->...hk"), einsum("...d,dhk->...hk"), 96, row, (1, 2)
        ),
        "einsum_shared": single(
            functools.partial(nn.Einsum, (4, 4, 3), "bsd,sde->bse", use_bias=False),
            einsum("bsd,sde->bse"),
            48,
            row,
            (0, 2),
        ),
        "einsum_turned": single(
            functools.partial(nn.Einsum, (3, 4, 2)),
            einsum("bsd,hdk->kbhs"),
            96,
            row,
            (0, 2),
            call=lambda layer, x: layer(x, "bsd,hdk->kbhs"),
            of_bias=lambda b: b[:, None, :, None],
        ),
        "keyword": single(functools.partial(nn.Dense, 3), dense, 12, vector, call=lambda layer, x: layer(inputs=x)),
        "tailored": lambda name: Member(
            lambda x: Tailored(3, name=name)(vector(x)),
            lambda p, x: 2 * p.layer(name, vector(x) + 1, dense),
            {name: 12},
        ),
        "remat": single(functools.partial(nn.remat(nn.Dense), 3), dense, 12, vector),
        "policy": single(
            functools.partial(nn.checkpoint(nn.Dense, policy=jax.checkpoint_policies.dots_saveable), 3),
            dense,
            12,
            vector,
        ),
        "boxed": single(
            functools.partial(
                nn.Dense, 3, kernel_init=nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
            ),
            dense,
            12,
            vector,
        ),
        "features.0": single(functools.partial(nn.Dense, 3), dense, 12, vector),
        "7": single(functools.partial(nn.Dense, 3), dense, 12, vector),
        "float16": single(
            functools.partial(nn.Dense, 3, dtype=jnp.float16, param_dtype=jnp.float16),
            dense,
            12,
            vector,
            tolerance=1e-3,
        ),
        "bfloat16": single(
            functools.partial(nn.Conv, 3, (3, 3), dtype=jnp.bfloat16), convolved, 16 * 9 * 4 * 3, tolerance=8e-3
        ),
        "bytes": single(functools.partial(nn.Dense, 3), dense, 12, lambda x: (8 * vector(x) ** 2).astype(np.uint8)),
        "integers": single(functools.partial(nn.Dense, 3), dense, 12, lambda x: (8 * vector(x)).astype(np.int32)),
        "experts": lambda name: Member(
            lambda x: nn.vmap(
                nn.Dense, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=None, axis_size=3
            )(2, name="experts")(vector(x)),
            experts,
            {f"experts[{i}]": 8 for i in range(3)},
        ),
        "product": lambda name: Member(
            lambda x: Product(name=name)("btc,bsc->bts", row(x), right=positive(row(x))),
            lambda p, x: p.product(name, row(x), positive(row(x)), "btc,bsc->bts"),
            {name: 64},
        ),
        "twice": lambda name: Member(run_twice, twice, {name: 32}),
        "attention": lambda name: Member(
            run_attention,
            attention,
            {f"attention/{part}": 64 for part in ("query", "key", "value", "scores", "mixture", "out")},
        ),
        "lstm_cell": lambda name: Member(
            lambda x: nn.RNN(nn.LSTMCell(3, name=name))(row(x))[:, -1],
            lstm,
            {f"{name}/i{gate}": 48 for gate in "ifgo"} | {f"{name}/h{gate}": 36 for gate in "ifgo"},
        ),
        "gru_cell": lambda name: Member(
            lambda x: nn.RNN(nn.GRUCell(3, name=name))(row(x))[:, -1],
            gru,
            {f"{name}/i{gate}": 48 for gate in "rzn"} | {f"{name}/h{gate}": 36 for gate in "rzn"},
        ),
        "weight_norm": lambda name: Member(
            lambda x: nn.WeightNorm(nn.Dense(3, name=name), name="wrapper")(vector(x)), weight_norm, {name: 12}
        ),
        "spectral_norm": lambda name: Member(
            lambda x: nn.SpectralNorm(nn.Dense(3, name=name), name="spectrum")(vector(x), update_stats=False),
            lambda p, x: p.layer(name, vector(x), dense, of_kernel=lambda k: k / spectral_norm(k)),
            {name: 12},
        ),
        "scan": looped(lambda name, x: scanned(Body, 3)(name=name)(x, None)[0], "scan/mlp", (3,)),
        "scan_last": looped(
            lambda name, x: scanned(Body, 3, axis=1)(name=name)(x, None)[0], "scan_last/mlp", (3,), axis=1
        ),
        "nested": looped(lambda name, x: scanned(Inner, 2)(name=name)(x, None)[0], "nested/inner/mlp", (2, 3)),
        "remat_scan": looped(
            lambda name, x: nn.remat_scan(RematBody, lengths=(2, 2))(name=name)(x), "remat_scan/mlp", (2, 2)
        ),
    }
    return {name: make(name) for name, make in found.items()}


class Kinds(nn.Module):
    """Members, all if none is named, as branches of one network; their outputs by name, or logits of their sum."""

    names: tuple[str, ...] = ()
    with_logits: bool = False

    @nn.compact
    def __call__(self, x):
        outputs = {name: members()[name].run(x) for name in self.names or members()}
        if not self.with_logits:
            return outputs
        means = [jnp.mean(y.astype(jnp.float32).reshape(len(x), -1), 1) for y in outputs.values() if len(y) == len(x)]
        return x[:, 0, 0, :3] * sum(means)[:, None]


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).standard_normal((3, 4, 4, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def variables(image):
    """Random variables: an initialisation of all kinds would compile for longer than all else."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(Kinds().init, jax.random.key(0), image)

    def values(leaf):
        fan_in = math.prod(leaf.shape[:-1]) or 1
        return jnp.asarray(rng.standard_normal(leaf.shape) / fan_in**0.5, leaf.dtype)

    statistics = jax.tree.map(lambda leaf: jnp.full(leaf.shape, STORED, leaf.dtype), shapes["batch_stats"])
    return {"params": jax.tree.map(values, shapes["params"]), "batch_stats": statistics}


@pytest.fixture(scope="module")
def exact(variables, image):
    """The float pass in NumPy."""
    found = Pass(variables["params"])
    for member in members().values():
        member.numpy(found, image)
    return found


@pytest.fixture(scope="module")
def profiles(variables, image):
    return interception.profile_inputs(Kinds(), variables, image)


@pytest.fixture(scope="module")
def layers():
    """The layers, but for the products in which the spectral norm finds its own."""
    found = workload.survey(Kinds(), (4, 4, 4), products=True)
    assert not found.outside
    return tuple(layer for layer in found.layers if not layer.path.startswith("spectrum:"))


def mixed(space, paths):
    """Format names of the layers, such that each format of the space is used."""
    names = [f.name for f in format_space(space)]
    return {path: names[i % len(names)] for i, path in enumerate(paths)}


def collection(profiles, names):
    """The collection of formats by path."""
    bank = format_space(",".join(dict.fromkeys(names.values())))
    choice = jnp.asarray([[f.name for f in bank].index(name) for name in names.values()])
    return format_choice.format_state(
        list(names),
        format_choice.format_bank(bank, use_unsigned=True),
        format_choice.precomputed_clip_multiples(bank, len(names), "gaussian", use_unsigned=True),
        choice,
        jax.tree.map(lambda *leaves: jnp.stack(leaves), *(profiles[path] for path in names)),
        jnp.asarray(True),
    )


@functools.cache
def quantized(operands=jnp.float32, names=()):
    @jax.jit
    def apply(variables, formats, x):
        return interception.apply_quantized(
            Kinds(names), {**variables, "formats": formats}, x, quantizer=Quantizer(operands=operands)
        )

    return apply


def distance(found, expected):
    found, expected = (np.asarray(a, np.float64) for a in (found, expected))
    return np.abs(found - expected).max() / np.abs(expected).max()


def test_macs_are_those_counted_by_hand(layers):
    expected = {path: macs for member in members().values() for path, macs in member.macs.items()}
    assert {layer.path: layer.macs for layer in layers} == expected


def test_profiles_are_those_of_numpy(profiles, exact):
    expected = exact.profiles()
    assert set(profiles) == set(expected)
    for path, (mean_square, smallest) in expected.items():
        np.testing.assert_allclose(profiles[path].mean_square, mean_square, rtol=1e-5, err_msg=path)
        np.testing.assert_allclose(profiles[path].smallest, smallest, rtol=1e-5, atol=1e-6, err_msg=path)


@pytest.mark.parametrize("space", FORMAT_SPACES)
def test_values_are_those_of_numpy(space, variables, profiles, exact, image):
    names = mixed(space, profiles)
    found = quantized()(variables, collection(profiles, names), image)
    slow = Pass(variables["params"], names, exact.profiles())
    far = {}
    for name, member in members().items():
        error = distance(found[name], member.numpy(slow, image))
        if error > member.tolerance:
            far[name] = error
    assert not far


def test_frozen_layers_compute_the_same(variables, profiles, image):
    names = mixed("int_l", profiles)
    formats = collection(profiles, names)
    frozen = aqt_like.freeze(aqt_like.QuantizedModel(Kinds(), names, formats, Quantizer()), variables, image)
    network, others = frozen.bind(Kinds())
    expected, found = quantized()(variables, formats, image), quantized()(others, network.collection, image)
    far = {name: distance(found[name], expected[name]) for name in members()}
    assert {name: error for name, error in far.items() if error > members()[name].tolerance} == {}
    kernels = {name for name in traverse_util.flatten_dict(variables, sep="/") if name.endswith("/kernel")}
    assert frozen.omitted.keys() == kernels  # nothing else reads them


def test_bit_operations_are_those_of_equation_1(layers):
    plan = format_plan(layers, format_space("int_s"))
    genome = [i % 3 for i in range(len(layers))]
    prices = pricing.price_layers(analytic.BIT_OPERATIONS.table(plan), genome)
    expected = [(4, 8, 16)[g] ** 2 * layer.macs for g, layer in zip(genome, layers, strict=True)]
    np.testing.assert_array_equal(prices, expected)


# Gradients.

# Those of the others are of the same arithmetic.
DIFFERENTIATED = (
    "conv", "grouped", "local", "up_turned", "batched", "einsum_turned", "tailored", "float16", "experts", "product",
    "twice", "weight_norm", "scan_last",
)  # fmt: skip


@jax.custom_vjp
def gradient_scaled(x, factor):
    """Returns `x`; its gradient g is multiplied by 1 + sign(g) · factor."""
    del factor
    return x


gradient_scaled.defvjp(
    lambda x, factor: (x, factor), lambda factor, g: (g * (1 + jnp.sign(g) * factor), jnp.zeros_like(factor))
)


def former(strength):
    """An estimator on dequantised values: straight-through within the range, scaled as in EWGS."""

    def estimator(x, row, clip):
        values = jax.lax.stop_gradient(gradients.straight_through(x, row, clip))
        bound = jnp.where(row.scaled, clip, row.largest)
        span = jnp.where(row.lowest < 0, 2 * bound, bound)
        distance = (jnp.clip(x, bound - span, bound) - values) / span
        scaled = gradient_scaled(x, jax.lax.stop_gradient(strength * distance))
        passed = jnp.where((x <= bound) & (x >= bound - span), scaled, 0.0)
        return jax.lax.stop_gradient(values - passed) + passed

    return estimator


def slopes(estimator_of):
    """The gradients of a sum of all outputs, weighted at random, to parameters and input."""

    @jax.jit
    def gradient(variables, formats, x, strength):
        def loss(params, x):
            outputs = interception.apply_quantized(
                Kinds(DIFFERENTIATED),
                {**variables, "params": params, "formats": formats},
                x,
                quantizer=Quantizer(estimator_of(strength)),
            )
            weights = [np.random.default_rng(i).standard_normal(y.shape) for i, y in enumerate(outputs.values())]
            return sum(jnp.sum(y.astype(jnp.float32) * w) for y, w in zip(outputs.values(), weights, strict=True))

        return jax.grad(loss, (0, 1))(variables["params"], x)

    return gradient


def test_gradients_are_those_of_dequantised_values(variables, profiles, image):
    by_codes, by_values = slopes(gradients.ewgs), slopes(former)
    paths = [path for path in profiles if any(path in members()[name].macs for name in DIFFERENTIATED)]
    for names, strength in ((mixed("int_s", paths), 0.0), (mixed("fp_s", paths), 0.5)):
        arguments = variables, collection(profiles, names), image, jnp.float32(strength)
        found, expected = by_codes(*arguments), by_values(*arguments)
        far = {}
        for (path, a), b in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True):
            limit = 1e-5 if a.dtype == jnp.float32 else 2e-3
            if np.any(b) and (error := distance(a, b)) > limit:
                far[jax.tree_util.keystr(path)] = error
        assert not far


# Search.

SEARCHED = ("conv", "einsum_turned", "float16", "experts", "product", "twice", "nested")


def test_two_steps_of_a_search(variables, layers, image):
    formats = format_space("int_s")
    layers = tuple(layer for layer in layers if any(layer.path in members()[name].macs for name in SEARCHED))
    plan = format_plan(layers, formats)
    table = analytic.BIT_OPERATIONS.table(plan)
    search = Search(
        model=called(Kinds(SEARCHED, with_logits=True)),
        plan=plan,
        bank=format_choice.format_bank(formats, use_unsigned=True),
        budgets=(pricing.Budget(table, 1.5 * analytic.BIT_OPERATIONS.uniform(layers, formats[0])),),
        optimizer=optax.sgd(0.01),
        loss=losses.cross_entropy(0.1),
        quality=accuracy,
        controller=fisher.make_controller(plan.option_bits(), total_steps=2, examples=2),
        total_steps=2,
        input_quantization_step=1,
        profile_steps=2,
    )
    policy = init_policy(plan.space, "searched")
    multiples = format_choice.precomputed_clip_multiples(formats, len(search.paths), "gaussian", use_unsigned=True)
    shapes = jax.eval_shape(functools.partial(init_state, search), policy, multiples, jax.random.key(0), image)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes._replace(key=None))
    state = zeros._replace(
        key=jax.random.key(0),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        calibration=interception.empty_calibration(search.paths),
        clip_multiples=multiples,
        policies=jax.tree.map(lambda leaf: leaf[None], policy),
    )
    step = jax.jit(chex.assert_max_traces(make_search_step(search), n=1))
    batch = {"input": image, "label": np.arange(3)}
    for _ in range(2):
        state, metrics = step(state, batch, batch)
        assert all(np.isfinite(value).all() for value in metrics.values())
    profile = interception.stacked_calibration(search.paths, state.calibration)
    assert (profile.batches == 2).all()
    silent = [x.path for x, d in zip(layers, plan.decision_of, strict=True) if not state.controller.losses[d, 0] > 0]
    assert silent == ["einsum_turned"]  # whose result is in no logit
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))


# The proof: operands rounded to bfloat16, as accelerators do, give the same values.


@pytest.mark.parametrize("space", FORMAT_SPACES)
def test_rounding_operands_to_bfloat16_changes_nothing(space, variables, profiles, image):
    names = mixed(space, profiles)
    expected = quantized()(variables, collection(profiles, names), image)
    names = {path: names[path] for member in DIFFERENTIATED for path in members()[member].macs}
    found = quantized(jnp.bfloat16, DIFFERENTIATED)(variables, collection(profiles, names), image)
    for name, values in found.items():
        if names.get(name, "").startswith("int"):
            np.testing.assert_array_equal(values, expected[name], err_msg=name)
        else:
            assert distance(values, expected[name]) <= 1e-6, name
