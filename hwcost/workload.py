"""Workloads: the layers of a model, their sizes and MACs, from an abstract trace that computes nothing."""

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.extend.core
import jax.numpy as jnp

from aqt_like.interception import Product, is_layer_call


@dataclasses.dataclass(frozen=True)
class LayerSpec:
    """One layer that can be quantised, at batch size 1.

    Attributes:
      path: module names joined by slashes, as in the parameters.
      kind: `"conv"`, `"dense"`, or `"product"` for a product of two activations, which has no weights.
      in_channels, out_channels: sizes of the last axis of input and output; of a product, the contracted size, and 1.
      input_size, output_size: the sizes of the axes between batch and channels; empty for dense layers on vectors. Of a
        product, the number of values of both factors over the contracted size, and of the result.
      kernel, stride: spatial sizes; empty for dense layers.
      groups: number of convolution groups.
      macs: multiply-accumulates (MACs) for one example, the MAC_l of FLIQS, Eq. 1.
      weights: number of kernel entries, without bias.
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

    @classmethod
    def square_convolution(
        cls, path: str, ins: int, outs: int, *, size: int, output_size: int, kernel: int, stride: int, groups: int
    ) -> "LayerSpec":
        """The layer that convolves square images of `size` with a square kernel into images of `output_size`."""
        weights = kernel * kernel * (ins // groups) * outs
        return cls(
            path=path,
            kind="conv",
            in_channels=ins,
            out_channels=outs,
            input_size=(size, size),
            output_size=(output_size, output_size),
            kernel=(kernel, kernel),
            stride=(stride, stride),
            groups=groups,
            macs=output_size * output_size * weights,
            weights=weights,
        )

    @property
    def input_values(self) -> int:
        """The number of input values for one example."""
        return math.prod(self.input_size) * self.in_channels

    @property
    def output_values(self) -> int:
        """The number of output values for one example."""
        return math.prod(self.output_size) * self.out_channels


Workload = tuple[LayerSpec, ...]


def trace(
    model: nn.Module,
    input_shape: Sequence[int],
    *,
    dtype: Any = jnp.float32,
    ignored: Sequence[str] = (),
    products: bool = False,
    **kwargs: Any,
) -> Workload:
    """The layers of `model`, in order of execution, for one example.

    Args:
      model: any linen module called as `model(x, **kwargs)`.
      input_shape: shape of one example, without batch axis.
      dtype: dtype of the example.
      ignored: regular expressions; layers whose path matches one are left out.
      products: whether to append products of two activations, as in attention. A product in a `Product` module has its
        path; any other has the path of its module and a number.
      **kwargs: passed to the model.

    Raises:
      ValueError: the model has no layer that can be quantised, or one whose MACs cannot be counted or whose input has
        too few axes; or an expression in `ignored` matches no path.
    """
    layers: dict[str, LayerSpec] = {}
    named_products: set[str] = set()

    def record(call: Any, args: tuple, call_kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        y = call(*args, **call_kwargs)
        if is_layer_call(context) and isinstance(context.module, Product):
            named_products.add("/".join(context.module.path))
        elif is_layer_call(context):
            spec = _spec(context.module, args[0].shape, y.shape)
            layers.setdefault(spec.path, spec)
        return y

    def run(x: jax.Array) -> Any:
        with nn.intercept_methods(record):
            return model.init(jax.random.key(0), x, **kwargs)

    closed_jaxpr = jax.make_jaxpr(run)(jax.ShapeDtypeStruct((1, *input_shape), dtype))
    if not layers:
        raise ValueError(f"{type(model).__name__} has no layer of a kind that can be quantised")
    equations = list(contractions(closed_jaxpr.jaxpr))
    for spec in layers.values():
        # A layer that runs twice counts its weights once and its MACs twice.
        macs = sum(_macs(equation) for path, equation in equations if path == spec.path)
        if not macs:
            raise ValueError(f"{spec.path}: found no convolution or dot product of this layer to count")
        layers[spec.path] = dataclasses.replace(spec, macs=macs)
    for pattern in ignored:
        if not any(re.search(pattern, path) for path in layers):
            raise ValueError(f"{pattern!r} is in no layer's path; there are {', '.join(layers)}")
    counted = [spec for path, spec in layers.items() if not any(re.search(pattern, path) for pattern in ignored)]
    if products:
        product_equations = [(path, equation) for path, equation in equations if path not in layers]
        for number, (path, equation) in enumerate(product_equations, start=1):
            counted.append(_product(path if path in named_products else f"{path}:product{number}", equation))
    return tuple(counted)


def _spec(layer: nn.Module, input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> LayerSpec:
    """The spec of a layer, without its MACs."""
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    groups = 1
    if isinstance(layer, nn.Conv | nn.ConvTranspose):
        kernel = _per_axis(layer.kernel_size, 1)
        if len(input_shape) < len(kernel) + 2:
            raise ValueError(
                f"{'/'.join(layer.path)}: its input {input_shape[1:]} has fewer axes than images with channels"
            )
        stride = _per_axis(layer.strides or 1, len(kernel))
        groups = layer.feature_group_count if isinstance(layer, nn.Conv) else 1
    return LayerSpec(
        path="/".join(layer.path),
        kind="conv" if kernel else "dense",
        in_channels=input_shape[-1],
        out_channels=output_shape[-1],
        input_size=tuple(input_shape[1:-1]),
        output_size=tuple(output_shape[1:-1]),
        kernel=kernel,
        stride=stride,
        groups=groups,
        macs=0,
        weights=layer.get_variable("params", "kernel").size,
    )


def _per_axis(size: int | Sequence[int], axes: int) -> tuple[int, ...]:
    return (size,) * axes if isinstance(size, int) else tuple(size)


def contractions(jaxpr: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The convolutions and dot products of a jaxpr, as pairs of module path and equation."""
    for equation in jaxpr.eqns:
        names = [name for name in (prefix, str(equation.source_info.name_stack)) if name]
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            yield module_path("/".join(names)), equation
        inner_jaxprs = list(jax.extend.core.jaxprs_in_params(equation.params))
        # Branches per platform are alternatives of one computation; the last is the default.
        for inner_jaxpr in inner_jaxprs[-1:] if equation.params.get("branches_platforms") else inner_jaxprs:
            yield from contractions(inner_jaxpr, "/".join(names))


def module_path(scope: str) -> str:
    """The module path of a name stack in a jaxpr, as in `"stage0/conv"`.

    Linen names scopes after modules, the model first; methods (`module.method`) and einsums (`->`) are left out.
    """
    return "/".join(name for name in scope.split("/")[1:] if "->" not in name and "." not in name)


def _macs(equation: Any) -> int:
    """MACs of a convolution or dot product: output values times terms summed for each."""
    left, right = (variable.aval for variable in equation.invars)
    results = equation.outvars[0].aval.size
    if equation.primitive.name == "dot_general":
        return results * math.prod(left.shape[axis] for axis in equation.params["dimension_numbers"][0][0])
    channels = right.shape[equation.params["dimension_numbers"].rhs_spec[0]]
    return results * right.size // channels // math.prod(equation.params["lhs_dilation"])


def _product(path: str, equation: Any) -> LayerSpec:
    """The spec of a product of two activations."""
    left, right = (variable.aval for variable in equation.invars)
    results = equation.outvars[0].aval.size
    contracted = _macs(equation) // results
    return LayerSpec(
        path=path,
        kind="product",
        in_channels=contracted,
        out_channels=1,
        input_size=((left.size + right.size) // contracted,),
        output_size=(results,),
        kernel=(),
        stride=(),
        groups=1,
        macs=_macs(equation),
        weights=0,
    )
