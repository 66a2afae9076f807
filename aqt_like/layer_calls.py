"""Layer calls: which calls of a model run a layer that can be quantised, and the paths of layers in loops.

A layer whose parameters a loop maps (`nn.scan`, `nn.vmap`, `nn.remat_scan`) is one layer per repetition: its path is
followed by the indices of the repetition, as in `blocks/mlp[3]` or, in nested loops, `blocks/mlp[1,2]`. Collections
hold all repetitions of such a layer as one entry, whose leaves have the repetitions as leading axes.
"""

import functools
import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util


class Model(Protocol):
    """A linen module, or what has its `init` and `apply`."""

    def init(self, *args: Any, **kwargs: Any) -> Any:
        """As of a linen module."""

    def apply(self, *args: Any, **kwargs: Any) -> Any:
        """As of a linen module."""


class Product(nn.Module):
    """An einsum of two activations as a module with a path: `Product()("bqc,bkc->bqk", query, key)`.

    Flax's attention accepts it: `qk_attn_weights_einsum_cls=lambda: Product(name="scores")`, and likewise
    `attn_weights_value_einsum_cls`.
    """

    @nn.compact
    def __call__(self, equation: str, left: jax.Array, right: jax.Array) -> jax.Array:
        """Returns `jnp.einsum(equation, left, right)`."""
        return jnp.einsum(equation, left, right)


QUANTIZABLE = (nn.Conv, nn.ConvLocal, nn.ConvTranspose, nn.Dense, nn.DenseGeneral, nn.Einsum, Product)

# The functions that compute these layers. A subclass or a lifted layer (`nn.remat(nn.Dense)`) has methods of its own,
# which may call one of these.
_COMPUTING = {inspect.unwrap(kind.__call__): kind.__call__ for kind in QUANTIZABLE}
_CONDITIONAL = re.compile(r"\b(cond|switch|while_loop)\(")


def is_layer_call(context: nn.module.InterceptorContext) -> bool:
    """Whether an intercepted call computes a layer that can be quantised."""
    computing = getattr(context.orig_method, "func", None)  # Flax binds it by functools.partial.
    return computing in _COMPUTING and not is_conditional(context.module)


def computing_method(context: nn.module.InterceptorContext) -> Callable[..., jax.Array]:
    """The method, of a class, that an intercepted layer call runs."""
    return _COMPUTING[getattr(context.orig_method, "func", None)]


def is_conditional(module: nn.Module) -> bool:
    """Whether a module runs in an `nn.cond`, `nn.switch` or `nn.while_loop`, where layers stay in float."""
    assert module.scope is not None
    return any(_CONDITIONAL.search(part) for part in module.scope.debug_path)


def layer_input(layer: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> jax.Array:
    """The input of a layer call; of a product, its first factor."""
    if isinstance(layer, Product):
        return args[1] if len(args) > 1 else kwargs["left"]
    return args[0] if args else kwargs["inputs"]


def second_factor(args: Sequence[Any], kwargs: Mapping[str, Any]) -> jax.Array:
    """The second factor of a call of a `Product`."""
    return args[2] if len(args) > 2 else kwargs["right"]


def repetition_path(path: str, repetition: Sequence[int]) -> str:
    """The path of one repetition of a layer; without indices, the path itself."""
    return f"{path}[{','.join(map(str, repetition))}]" if len(repetition) else path


def repetition_paths(path: str, shape: Sequence[int]) -> list[str]:
    """The paths of all repetitions of a layer that loops repeat `shape` times, in order; () for a layer in no loop.

    Raises:
      ValueError: the layer's own name is one of repetitions.
    """
    if split_repetition(path)[1]:
        raise ValueError(f"{path}: names in brackets are those of repetitions in a loop: rename the layer")
    return [repetition_path(path, index) for index in np.ndindex(*shape)]


def split_repetition(path: str) -> tuple[str, tuple[int, ...]]:
    """The path of the layer and the indices of the repetition."""
    match = re.fullmatch(r"(.*)\[(\d+(?:,\d+)*)\]", path)
    return (match[1], tuple(map(int, match[2].split(",")))) if match else (path, ())


def by_layer(paths: Sequence[str], stacked: Any, leaf_name: str | None = None) -> dict[str, Any]:
    """A variable collection with one entry per layer, nested at slashes, from a pytree of leaves `[L, …]`.

    Args:
      paths: path of each of the L layers.
      stacked: the pytree.
      leaf_name: name of the entry in the layer's scope; the entry takes its place if None.

    Raises:
      ValueError: some repetitions of a layer are missing.
    """
    return nested({path: jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i, path in enumerate(paths)}, leaf_name)


def by_layer_on_host(paths: Sequence[str], stacked: Any) -> dict[str, Any]:
    """`by_layer` in NumPy, of what a program returned: if that split it, it would compile each entry by itself."""
    return by_layer(paths, jax.device_get(stacked))


def nested(entries: Mapping[str, Any], leaf_name: str | None = None) -> dict[str, Any]:
    """A variable collection, see `by_layer`, from the entry of each layer by path: pytrees of arrays."""
    suffix = () if leaf_name is None else (leaf_name,)
    members: dict[str, dict[tuple[int, ...], Any]] = {}
    for path, entry in entries.items():
        layer, repetition = split_repetition(path)
        members.setdefault(layer, {})[repetition] = entry
    collection = {}
    for layer, repeated in members.items():
        shape = tuple(max(axis) + 1 for axis in zip(*repeated, strict=True))
        if len(repeated) != math.prod(shape):
            raise ValueError(
                f"{layer}: expected all its {math.prod(shape)} repetitions in the loop, got {len(repeated)}"
            )
        ordered = [repeated[index] for index in np.ndindex(*shape)]
        collection[(*layer.split("/"), *suffix)] = jax.tree.map(
            lambda *leaves, shape=shape: (
                jnp.stack(leaves).reshape(*shape, *jnp.shape(leaves[0])) if shape else leaves[0]
            ),
            *ordered,
        )
    return traverse_util.unflatten_dict(collection)


def entry_of(collection: Mapping[str, Any], path: str) -> Any:
    """The entry of a layer, or of one repetition of it, in a collection that `by_layer` returned."""
    layer, repetition = split_repetition(path)
    entry = functools.reduce(lambda inner, name: inner[name], layer.split("/"), collection)
    return jax.tree.map(lambda leaf: leaf[repetition], entry)
