"""What a network computes: its layers and their sizes, read off the model without spending a FLOP."""

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.extend.core
import jax.numpy as jnp

from aqt_like.layers import is_layer_call


@dataclasses.dataclass(frozen=True)
class LayerSpec:
    """One layer that can be quantised, at batch size 1.

    Attributes:
      path: names of the modules down to it, joined by slashes, as in the parameters.
      kind: `"conv"`, `"dense"`, or `"product"` for a product of two activations, which has no weights.
      in_channels, out_channels: sizes of the last axis of input and output; of a product, what is contracted, and 1.
      input_size, output_size: the sizes before it; empty for dense layers on vectors. Of a product, the number of
        values of both factors over what is contracted, and of the result.
      kernel, stride: spatial; empty for dense layers.
      groups: number of convolution groups.
      macs: multiply-accumulates for one example.
      weights: number of kernel entries (without bias).
    """

    path: str
    kind: str
    in_channels: int
    out_channels: int
    input_size: tuple[int, ...]
    output_size: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    groups: int
    macs: int
    weights: int

    @property
    def input_values(self) -> int:
        """Number of values of the input."""
        return math.prod(self.input_size) * self.in_channels

    @property
    def output_values(self) -> int:
        """Number of values of the output."""
        return math.prod(self.output_size) * self.out_channels


Workload = tuple[LayerSpec, ...]


def trace(
    model: nn.Module, input_shape: Sequence[int], *, ignored: Sequence[str] = (), products: bool = False, **kwargs: Any
) -> Workload:
    """The layers of `model`, in the order in which they run, for one example of shape `input_shape` (no batch axis).

    Args:
      model: any linen module called as `model(x, **kwargs)`.
      input_shape: shape of one example.
      ignored: regular expressions; layers in whose path one is found are left out.
      products: whether products of two activations, as in attention, follow the layers.
      **kwargs: passed to the model.

    Raises:
      ValueError: the model has no layer that can be quantised, or an expression of `ignored` that no path contains.
    """
    layers: dict[str, LayerSpec] = {}

    def record(call: Any, args: tuple, call_kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        y = call(*args, **call_kwargs)
        if is_layer_call(context):
            spec = _spec(context.module, args[0].shape, y.shape)
            known = layers.get(spec.path)  # A layer that runs twice has its weights once and its MACs twice.
            layers[spec.path] = spec if known is None else dataclasses.replace(known, macs=known.macs + spec.macs)
        return y

    def run(x: jax.Array) -> Any:
        with nn.intercept_methods(record):
            return model.init(jax.random.key(0), x, **kwargs)

    closed = jax.make_jaxpr(run)(jax.ShapeDtypeStruct((1, *input_shape), jnp.float32))
    if not layers:
        raise ValueError(f"{type(model).__name__} has no layer of a kind that can be quantised")
    for pattern in ignored:
        if not any(re.search(pattern, path) for path in layers):
            raise ValueError(f"{pattern!r} is in no layer's path; there are {', '.join(layers)}")
    counted = [spec for path, spec in layers.items() if not any(re.search(pattern, path) for pattern in ignored)]
    if products:
        counted += [product for product in _products(closed.jaxpr, "") if product.path.split(":")[0] not in layers]
    return tuple(counted)


def _products(jaxpr: Any, prefix: str) -> Iterator[LayerSpec]:
    """The `dot_general`s of a jaxpr, as products; their paths are the names of the scopes that linen puts them in."""
    for number, equation in enumerate(jaxpr.eqns):
        names = "/".join(part for part in (prefix, str(equation.source_info.name_stack)) if part)
        if equation.primitive.name == "dot_general":
            left, right = (variable.aval for variable in equation.invars)
            contracted = math.prod(left.shape[axis] for axis in equation.params["dimension_numbers"][0][0])
            results = math.prod(equation.outvars[0].aval.shape)
            # The first name is the model's own; an einsum's equation is not part of the path.
            path = "/".join(name for name in names.split("/")[1:] if "->" not in name)
            yield LayerSpec(
                path=f"{path}:product{number}" if "->" in names else path,
                kind="product",
                in_channels=contracted,
                out_channels=1,
                input_size=((left.size + right.size) // contracted,),
                output_size=(results,),
                kernel=(),
                stride=(),
                groups=1,
                macs=contracted * results,
                weights=0,
            )
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from _products(inner, names)


def _spec(layer: nn.Module, input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> LayerSpec:
    in_channels, out_channels = input_shape[-1], output_shape[-1]
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    groups = 1
    if isinstance(layer, nn.Conv):
        kernel = _per_axis(layer.kernel_size, 1)
        stride = _per_axis(layer.strides or 1, len(kernel))
        groups = layer.feature_group_count
    weights = math.prod(kernel) * (in_channels // groups) * out_channels
    return LayerSpec(
        path="/".join(layer.path),
        kind="conv" if kernel else "dense",
        in_channels=in_channels,
        out_channels=out_channels,
        input_size=tuple(input_shape[1:-1]),
        output_size=tuple(output_shape[1:-1]),
        kernel=kernel,
        stride=stride,
        groups=groups,
        macs=weights * math.prod(output_shape[1:-1]),
        weights=weights,
    )


def _per_axis(size: int | Sequence[int], axes: int) -> tuple[int, ...]:
    return (size,) * axes if isinstance(size, int) else tuple(size)
