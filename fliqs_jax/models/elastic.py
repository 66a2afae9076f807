"""Families: networks that one largest network contains (FLIQS, §6: FLIQNAS; APQ, §3.1: once for all).

A family says which decisions choose the channels, the kernel and the presence of each elastic layer of its largest
network, which is plain Flax. All else follows here. With the weights that `specialised` returns, the largest network
computes what the smaller one does: a channel is left out by zeros in kernels and normalisation, a block by zeros at the
end of its branch, and a kernel is padded with zeros. The choices are traced, so one compiled step serves all networks.
`cut_out` makes the smaller network itself; `variants` tells cost models what its layers are.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from fliqs_jax.models.kernel_sizes import BRANCHES, KernelSizes, padded
from hwcost.layer_variants import Architecture, LayerVariants, resized
from hwcost.space import Decision, SearchSpace
from hwcost.workload import LayerSpec

Params = Any  # a tree of arrays

Options = Mapping[str, Any]
"""The option of each decision by its name: integers, or int32 scalars that may be traced."""


class Channels(NamedTuple):
    """A number of channels that decisions choose: `factor` times the largest of the chosen values and `least`.

    Attributes:
      decisions: names of the decisions.
      values: of each, the value of each option.
      least: what it is without decisions.
      factor: of an expansion.
    """

    decisions: tuple[str, ...] = ()
    values: tuple[tuple[int, ...], ...] = ()
    least: int = 0
    factor: int = 1

    def or_wider(self, other: "Channels") -> "Channels":
        """The wider of two numbers of channels with equal factors, as of a sum."""
        assert self.factor == other.factor == 1
        return Channels(
            self.decisions + other.decisions, self.values + other.values, max(self.least, other.least), self.factor
        )

    def times(self, factor: int) -> "Channels":
        """The channels of an expansion."""
        return self._replace(factor=self.factor * factor)

    @property
    def most(self) -> int:
        """The largest number."""
        return self.factor * max(self.least, *map(max, self.values))

    def count(self, options: Options) -> Any:
        """The number for these options: int32 scalar."""
        chosen = [jnp.asarray(v, jnp.int32)[options[d]] for d, v in zip(self.decisions, self.values, strict=True)]
        return self.factor * functools.reduce(jnp.maximum, chosen, jnp.int32(self.least))


FIXED = Channels()  # as many as the largest network has


class Gate(NamedTuple):
    """A block's presence: the option of `decision`, a depth, is `lowest` or a later one."""

    decision: str
    lowest: int


class ElasticLayer(NamedTuple):
    """A linear layer of the largest network whose shape decisions choose.

    Attributes:
      path: of the layer.
      inputs, outputs: its channels.
      norm: path of the normalisation of its outputs, if any.
      kernel: name of the decision of its kernel's size, if any; options are sizes, ascending.
      gate: when it is there; always if None.
      ends_branch: whether it is the last of a branch, which zeros in its normalisation leave out.
    """

    path: str
    inputs: Channels = FIXED
    outputs: Channels = FIXED
    norm: str = ""
    kernel: str = ""
    gate: Gate | None = None
    ends_branch: bool = False


class Weights(NamedTuple):
    """The trained weights of a family.

    Attributes:
      params: parameters of the largest network.
      kernels: by the decision of a kernel's size, what `KernelSizes` stores.
    """

    params: Params
    kernels: dict[str, dict[str, jax.Array]]


class Family(NamedTuple):
    """Networks that one largest network contains.

    Attributes:
      space: the decisions.
      largest: the largest network; its parameters hold all others.
      layers: its elastic layers.
      network: `(genome int32[D]) → module`, a network itself.
      settings: `(genome int32[D]) → dict`, the arguments that make it, with lists in the place of tuples, as JSON has.
      base: int32[D], the genome of the network that the family is made from.
      kernel_sizes: how kernels of several sizes are held.
    """

    space: SearchSpace
    largest: nn.Module
    layers: tuple[ElasticLayer, ...]
    network: Callable[[np.ndarray], nn.Module]
    settings: Callable[[np.ndarray], dict[str, Any]]
    base: np.ndarray
    kernel_sizes: KernelSizes

    def sizes(self, decision: str) -> tuple[int, ...]:
        """The sizes of a kernel that a decision chooses among."""
        return tuple(map(int, self.space.decisions[self.space.index(decision)].options))


MOST_CHANNELS = 2**20


class Choice(NamedTuple):
    """A setting that parts of a network choose one by one.

    Attributes:
      kind: of the decisions, which are called as in `stage1_block1.width`.
      setting: field of the network, a tuple with an entry per part.
      options: numbers to choose from, ascending; with one, there is no decision.
      own: what the base network has.
    """

    kind: str
    setting: str
    options: tuple[float, ...]
    own: float

    def decision(self, part: str) -> str:
        """The name of the decision of a part; empty if there is nothing to decide."""
        return f"{part}.{self.kind}" if len(self.options) > 1 else ""

    def channels(self, part: str, values: Sequence[int]) -> Channels:
        """The channels of a part, given those of each option.

        Raises:
          ValueError: an option gives none, or too many.
        """
        if not 0 < min(values) <= max(values) < MOST_CHANNELS:
            raise ValueError(f"{self.setting}={self.options} gives {part} {min(values)} to {max(values)} channels")
        return Channels((self.decision(part),), (tuple(values),)) if len(values) > 1 else Channels(least=values[0])


def family_of_settings(
    base: nn.Module, parts: Sequence[str], choices: Sequence[Choice], layers: Sequence[ElasticLayer]
) -> Family:
    """The family of networks like `base` with other settings, each a tuple with an entry per part.

    Raises:
      ValueError: options do not ascend, or lack what the base has; or the base has settings of its own.
    """
    for choice in choices:
        if choice.own not in choice.options or list(choice.options) != sorted(set(choice.options)):
            raise ValueError(
                f"{choice.setting}={choice.options}: expected ascending numbers with {choice.own:g} among them"
            )
        if given := getattr(base, choice.setting):
            raise ValueError(f"{choice.setting}={given}: a family is made from a network without")
    space = SearchSpace(
        tuple(
            Decision(choice.decision(part), tuple(f"{option:g}" for option in choice.options))
            for part in parts
            for choice in choices
            if choice.decision(part)
        )
    )

    clone: Any = base.clone

    def settings(genome: np.ndarray) -> dict[str, Any]:
        options = options_of(space, genome)

        def of_part(choice: Choice, part: str) -> float:
            return choice.options[options[choice.decision(part)] if choice.decision(part) else 0]

        return {choice.setting: [of_part(choice, part) for part in parts] for choice in choices}

    def network(genome: np.ndarray) -> nn.Module:
        return clone(**{name: tuple(values) for name, values in settings(genome).items()})

    own = {choice.kind: choice.options.index(choice.own) for choice in choices}
    return Family(
        space=space,
        largest=clone(**{choice.setting: (choice.options[-1],) * len(parts) for choice in choices}),
        layers=tuple(layers),
        network=network,
        settings=settings,
        base=np.asarray([own[decision.name.rpartition(".")[2]] for decision in space.decisions], np.int32),
        kernel_sizes=BRANCHES,
    )


def options_of(space: SearchSpace, genome: Any) -> dict[str, Any]:
    """The option of each decision by its name, of a genome, int32[D], which may be traced."""
    return {decision.name: genome[number] for number, decision in enumerate(space.decisions)}


def init(family: Family, key: jax.Array, inputs: jax.Array, **mode: Any) -> tuple[Weights, Params]:
    """Initial weights and batch statistics of the largest network, for inputs of the shape of `inputs`."""
    variables = family.largest.init(key, inputs, **mode)
    flat = _flat(variables["params"])
    kernels = {
        layer.kernel: family.kernel_sizes.init(
            jax.random.fold_in(key, number), family.sizes(layer.kernel), flat[f"{layer.path}/kernel"].shape[-1]
        )
        for number, layer in enumerate(family.layers)
        if layer.kernel
    }
    return Weights(variables["params"], kernels), variables.get("batch_stats", {})


def specialised(family: Family, weights: Weights, options: Options, joint: Mapping[str, Any] | None = None) -> Params:
    """Parameters with which the largest network computes the network of these options.

    `joint` says by decision of a kernel's size, as bools that may be traced, where all sizes run together, as the mean
    of their kernels (FLIQS, A.4: convolution is linear).
    """
    flat = _flat(weights.params)
    for layer in family.layers:
        name = f"{layer.path}/kernel"
        if layer.kernel:
            kernels = _kernels(family, weights, layer)
            stacked = jnp.stack([padded(kernel, kernels[-1].shape[0]) for kernel in kernels])
            flat[name] = stacked[options[layer.kernel]]
            if joint is not None:
                flat[name] = jnp.where(joint[layer.kernel], jnp.mean(stacked, axis=0), flat[name])
        if layer.inputs.decisions:
            there = _prefix(layer.inputs, options, flat[name].shape[-2])[:, None]
            flat[name] = flat[name] * _gain(layer, options) * there
        for vector in _vectors(flat, layer):
            if layer.ends_branch and layer.gate and vector.startswith(f"{layer.norm}/"):
                flat[vector] = flat[vector] * (options[layer.gate.decision] >= layer.gate.lowest).astype(jnp.float32)
        if layer.outputs.decisions:
            for output in (name, *_vectors(flat, layer)):
                flat[output] = flat[output] * _prefix(layer.outputs, options, flat[output].shape[-1])
    return traverse_util.unflatten_dict(flat, sep="/")


def cut_out(
    family: Family, weights: Weights, batch_stats: Params, genome: np.ndarray
) -> tuple[nn.Module, dict[str, Params]]:
    """The network of a genome, int32[D], with its variables; it computes what the specialised largest one does."""
    options = {name: int(option) for name, option in options_of(family.space, np.asarray(genome)).items()}
    params, stats = _flat(weights.params), _flat(batch_stats)
    for layer in family.layers:
        name = f"{layer.path}/kernel"
        if layer.gate and options[layer.gate.decision] < layer.gate.lowest:
            for gone in (name, *_vectors(params, layer)):
                del params[gone]
            for gone in _vectors(stats, layer):
                del stats[gone]
            continue
        if layer.kernel:
            params[name] = _kernels(family, weights, layer)[options[layer.kernel]]
        if layer.inputs.decisions:
            params[name] = params[name][..., : int(layer.inputs.count(options)), :] * _gain(layer, options)
        if layer.outputs.decisions:
            outputs = int(layer.outputs.count(options))
            for flat, names in ((params, (name, *_vectors(params, layer))), (stats, _vectors(stats, layer))):
                flat.update({each: flat[each][..., :outputs] for each in names})
    variables = {"params": params, **({"batch_stats": stats} if stats else {})}
    return family.network(np.asarray(genome)), {
        name: traverse_util.unflatten_dict(flat, sep="/") for name, flat in variables.items()
    }


def _flat(tree: Params) -> dict[str, Any]:
    return dict(traverse_util.flatten_dict(tree, sep="/"))


def _kernels(family: Family, weights: Weights, layer: ElasticLayer) -> list[jax.Array]:
    largest = _flat(weights.params)[f"{layer.path}/kernel"]
    return family.kernel_sizes.kernels(largest, weights.kernels[layer.kernel], family.sizes(layer.kernel))


def _prefix(channels: Channels, options: Options, size: int) -> jax.Array:
    """float32[size]: 1 for channels that are there, 0 for others."""
    return (jnp.arange(size) < channels.count(options)).astype(jnp.float32)


def _gain(layer: ElasticLayer, options: Options) -> jax.Array:
    """The factor on a kernel, float32 scalar, for less than all inputs: with it, initial outputs deviate as much.

    Where nothing normalises outputs, they would fade from one narrow layer to the next: the initial weights of the
    largest network are for its own number of inputs. Factors are looked up, so that all programs multiply by the same.
    """
    if layer.norm:
        return jnp.float32(1)
    gains = np.sqrt(layer.inputs.most / np.arange(1, layer.inputs.most + 1)).astype(np.float32)
    return jnp.asarray(gains)[layer.inputs.count(options) - 1]


def _vectors(flat: Mapping[str, Any], layer: ElasticLayer) -> list[str]:
    """Names of a layer's bias, and of what its normalisation holds."""
    bias = [f"{layer.path}/bias"] if f"{layer.path}/bias" in flat else []
    return bias + [name for name in flat if layer.norm and name.startswith(f"{layer.norm}/")]


def input_shares(family: Family, options: Options, paths: Sequence[str]) -> jax.Array:
    """The share of each layer's input channels that are there, float32[L], of those of the largest network."""
    shares = {layer.path: _input_share(layer, options) for layer in family.layers}
    return jnp.stack([shares.get(path, jnp.float32(1)) for path in paths])


def _input_share(layer: ElasticLayer, options: Options) -> jax.Array:
    channels = layer.inputs
    if not channels.decisions:
        return jnp.float32(1)
    return channels.count(options).astype(jnp.float32) / channels.most


def architecture(family: Family, layers: Sequence[LayerSpec]) -> Architecture:
    """What a plan and cost models need of a family, given the layers of its largest network."""
    found = {layer.path: variants(family, layer) for layer in layers}
    shaped = {path: each for path, each in found.items() if each is not None}
    return Architecture(family.space, family.space.decode(family.base), shaped, family.settings)


def variants(family: Family, layer: LayerSpec) -> LayerVariants | None:
    """What a layer of the largest network may be; None for one that no decision shapes."""
    (elastic,) = [each for each in family.layers if each.path == layer.path] or [None]
    if elastic is None:
        return None
    gate, kernel = elastic.gate, elastic.kernel
    names = [*([gate.decision] if gate else []), *([kernel] if kernel else [])]
    names = list(dict.fromkeys((*names, *elastic.inputs.decisions, *elastic.outputs.decisions)))
    counts = [len(family.space.decisions[family.space.index(name)].options) for name in names]
    grid = dict(zip(names, np.indices(counts, np.int32), strict=True))

    def numbers(channels: Channels, own: int) -> np.ndarray:
        if not channels.decisions:
            return np.full(counts, own)
        values = [np.asarray(v)[grid[d]] for d, v in zip(channels.decisions, channels.values, strict=True)]
        return channels.factor * np.maximum(np.maximum.reduce(values), channels.least)

    outs = numbers(elastic.outputs, layer.out_channels)
    ins = numbers(elastic.inputs, layer.in_channels)
    sizes = np.asarray(family.sizes(kernel))[grid[kernel]] if kernel else np.zeros_like(ins)
    there = grid[gate.decision] >= gate.lowest if gate else np.ones_like(ins)
    shapes = np.stack([ins * there, outs * there, sizes * there, there], axis=-1)
    distinct, index = np.unique(shapes.reshape(-1, 4), axis=0, return_inverse=True)
    specs = tuple(
        resized(layer, in_channels=int(i), out_channels=int(o), kernel=int(k)) if is_there else None
        for i, o, k, is_there in distinct
    )
    return LayerVariants(tuple(names), specs, index.reshape(counts).astype(np.int32))
