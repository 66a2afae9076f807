"""Workloads: the layers of a model, their sizes and MACs, from an abstract trace that computes nothing."""

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.extend.core
import jax.numpy as jnp
from flax import traverse_util

from aqt_like.kernel_axes import KernelAxes
from aqt_like.layer_calls import Product, is_layer_call, layer_input, repetition_paths
from aqt_like.lifting import OBSERVED, repeated_with_params
from aqt_like.quantized_layer import kernel_seen


@dataclasses.dataclass(frozen=True)
class LayerSpec:
    """One layer that can be quantised, at batch size 1.

    Attributes:
      path: module names joined by slashes, as in the parameters.
      kind: `"conv"`, `"conv_transpose"`, `"conv_local"` (unshared weights), `"dense"`, or `"product"` for a product of
        two activations, which has no weights.
      in_channels, out_channels: channels of input and output. Of a dense layer over or to several axes (as attention
        heads), the product of their sizes. Of a product, the contracted size, and 1.
      input_size, output_size: the sizes of the other axes but the batch; empty for dense layers on vectors. Of a
        product, the number of values of both factors over the contracted size, and of the result.
      kernel, stride: spatial sizes; empty for dense layers.
      groups: number of convolution groups; of a dense layer, of kernels along axes that its input and output share.
      macs: multiply-accumulates (MACs) for one example in all runs, the MAC_l of FLIQS, Eq. 1.
      weights: number of kernel entries, without bias.
      dilation, input_dilation: spatial dilation of kernel and input, empty for 1 everywhere.
      runs: how often the layer runs for one example, with inputs of these sizes; other runs count by their MACs.
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
    dilation: tuple[int, ...] = ()
    input_dilation: tuple[int, ...] = ()
    runs: float = 1

    @property
    def is_dilated(self) -> bool:
        """Whether kernel or input are dilated."""
        return any(size > 1 for size in (*self.dilation, *self.input_dilation))

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


class Outside(NamedTuple):
    """A computation in no listed layer: its place in the model, and its MACs for one example."""

    path: str
    macs: int


class Survey(NamedTuple):
    """What a model computes for one example.

    Attributes:
      layers: the listed layers.
      outside: convolutions and matrix products in no layer, as of tied heads or parameters of the model's own.
    """

    layers: Workload
    outside: tuple[Outside, ...]

    def remark(self) -> str:
        """A line about the MACs outside of the listed layers, with their share; empty if there are none."""
        inside, missing = (sum(part.macs for part in parts) for parts in (self.layers, self.outside))
        if not missing:
            return ""
        largest = sorted(self.outside, key=lambda part: -part.macs)[:3]
        places = ", ".join(f"{part.path or 'the model itself'} ({part.macs:,})" for part in largest)
        more = f" and {len(self.outside) - 3} more places" if len(self.outside) > 3 else ""
        return (
            f"{missing:,} of {inside + missing:,} MACs ({missing / (inside + missing):.1%}) are in no listed layer and "
            f"stay in float, unpriced: {places}{more}"
        )


def trace(
    model: nn.Module,
    input_shape: Sequence[int],
    *,
    dtype: Any = jnp.float32,
    ignored: Sequence[str] = (),
    products: bool = False,
    **kwargs: Any,
) -> Workload:
    """The layers of `model`, in order of execution, for one example; see `survey` for arguments and errors."""
    return survey(model, input_shape, dtype=dtype, ignored=ignored, products=products, **kwargs).layers


def survey(
    model: nn.Module,
    input_shape: Sequence[int],
    *,
    dtype: Any = jnp.float32,
    ignored: Sequence[str] = (),
    products: bool = False,
    **kwargs: Any,
) -> Survey:
    """What `model.apply` computes for one example: layers in order of execution, and what is in no layer.

    A layer that loops repeat with parameters of its own is one layer per repetition (`aqt_like.layer_calls`). Layers in
    `nn.cond`, `nn.switch` and `nn.while_loop` stay in float, and count as outside.

    Args:
      model: any linen module called as `model(x, **kwargs)`.
      input_shape: shape of one example, without batch axis.
      dtype: dtype of the example.
      ignored: regular expressions; layers whose path matches one are left out.
      products: whether to append products of two activations, as in attention. A product in a `Product` module has its
        path; any other has the path of its module and a number.
      **kwargs: passed to the model.

    Raises:
      ValueError: the model has no layer that can be quantised, or one whose input has too few axes; or an expression in
        `ignored` matches no path.
    """
    calls: list[_Call | None] = []

    def record(call: Any, args: tuple, call_kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        if not is_layer_call(context):
            return call(*args, **call_kwargs)
        layer, number = context.module, len(calls)
        calls.append(None)
        with jax.named_scope(f"{_MARK}{number}"), kernel_seen(layer, args, call_kwargs) as seen:
            y = call(*args, **call_kwargs)
        axes = None if isinstance(layer, Product) else seen[1]
        calls[number] = _Call(layer, axes, layer_input(layer, args, call_kwargs).shape, y.shape)
        if layer.is_mutable_collection(OBSERVED):
            layer.put_variable(OBSERVED, f"{_MARK}{number}", jnp.zeros((0,)))
        return y

    keys = {name: jax.random.key(0) for name in ("params", "dropout")}
    x = jax.ShapeDtypeStruct((1, *input_shape), dtype)
    variables = jax.eval_shape(lambda x: model.init(keys, x, **kwargs), x)
    mutable = [*(name for name in variables if name != "params"), OBSERVED]

    def run(variables: Any, x: jax.Array) -> Any:
        with repeated_with_params(), nn.intercept_methods(record):
            return model.apply(variables, x, mutable=mutable, rngs=keys, **kwargs)[1].get(OBSERVED, {})

    closed_jaxpr, marks = jax.make_jaxpr(run, return_shape=True)(variables, x)
    flat_marks: dict[tuple[str, ...], Any] = traverse_util.flatten_dict(marks)
    runs = {int(path[-1].removeprefix(_MARK)): Runs.of(mark.shape) for path, mark in flat_marks.items()}
    equations = list(_contractions(closed_jaxpr.jaxpr))
    layers: dict[str, LayerSpec] = {}
    named_products: dict[str, LayerSpec] = {}
    for number in sorted(runs):
        call = calls[number]
        assert call is not None
        if call.axes is None:
            inside = [found.equation for found in equations if found.layer_call == number]
            found_specs = [_product("/".join(call.layer.path), equation) for equation in inside[:1]]
        else:
            found_specs = [_spec(call)]
        for one_run in found_specs:
            spec = _times(one_run, runs[number].shared)
            for path in repetition_paths(spec.path, runs[number].repetitions):
                listed = named_products if call.axes is None else layers
                listed[path] = _added(listed.get(path), dataclasses.replace(spec, path=path))
    if not layers:
        raise ValueError(f"{type(model).__name__} has no layer of a kind that can be quantised")
    for pattern in ignored:
        if not any(re.search(pattern, path) for path in layers):
            raise ValueError(f"{pattern!r} is in no layer's path; there are {', '.join(layers)}")
    counted = [spec for path, spec in layers.items() if not any(re.search(pattern, path) for pattern in ignored)]
    unlisted = [found for found in equations if found.layer_call not in runs]
    if products:
        counted += named_products.values()
        dots = [found for found in unlisted if found.is_product]
        unlisted = [found for found in unlisted if not found.is_product]
        for index, found in enumerate(dots, start=1):
            counted.append(_times(_product(f"{found.path}:product{index}", found.equation), found.runs))
    outside: dict[str, int] = {} if products else {path: spec.macs for path, spec in named_products.items()}
    for found in unlisted:
        outside[found.path] = outside.get(found.path, 0) + _macs(found.equation) * found.runs
    return Survey(tuple(counted), tuple(Outside(path, macs) for path, macs in outside.items()))


_MARK = "quantizable_layer_"


class _Call(NamedTuple):
    """A call of a layer, its kernel axes (of a product, None) and the shapes of its input and output."""

    layer: nn.Module
    axes: KernelAxes | None
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]


class Runs(NamedTuple):
    """How often loops run a layer: as a shape with parameters of its own, and how often with each."""

    repetitions: tuple[int, ...]
    shared: int

    @classmethod
    def of(cls, boundary: tuple[int, ...]) -> "Runs":
        """The runs from the shape of an array of size 0 that loops stacked (`aqt_like.lifting`)."""
        split = boundary.index(0)
        return cls(boundary[:split], math.prod(boundary[split + 1 :]))


def _spec(call: _Call) -> LayerSpec:
    """The spec of one run of a layer."""
    layer, axes = call.layer, call.axes
    assert axes is not None
    path = "/".join(layer.path)
    output_values = math.prod(call.output_shape)
    if isinstance(layer, nn.Conv | nn.ConvLocal | nn.ConvTranspose):
        kernel = _per_axis(layer.kernel_size, 1)
        rank = len(kernel)
        if len(call.input_shape) < rank + 1:
            raise ValueError(f"{path}: its input {call.input_shape} has fewer axes than images with channels")
        stride = _per_axis(layer.strides or 1, rank)
        transposed = isinstance(layer, nn.ConvTranspose)
        inserted = stride if transposed else _per_axis(layer.input_dilation or 1, rank)
        output_size = call.output_shape[-rank - 1 : -1]
        spec = LayerSpec(
            path=path,
            kind="conv_transpose" if transposed else "conv_local" if isinstance(layer, nn.ConvLocal) else "conv",
            in_channels=call.input_shape[-1],
            out_channels=call.output_shape[-1],
            input_size=tuple(call.input_shape[-rank - 1 : -1]),
            output_size=tuple(output_size),
            kernel=kernel,
            stride=stride,
            groups=layer.feature_group_count if isinstance(layer, nn.Conv) else 1,
            macs=math.prod(output_size) * call.output_shape[-1] * axes.contracted_size // math.prod(inserted),
            weights=math.prod(axes.shape),
            dilation=_per_axis(layer.kernel_dilation or 1, rank),
            input_dilation=(1,) * rank if transposed else inserted,
        )
        # Convolutions flatten all axes before those of an image, as of frames.
        return _times(spec, output_values // spec.output_values)
    positions = tuple(
        size
        for axis, size in enumerate(call.output_shape)
        if axis not in {a % len(call.output_shape) for a in axes.output_axes}
    )
    groups = math.prod(axes.shape[axis] for axis in axes.shared)
    # The kernel's channels may be several axes, as of heads; those that it shares with the input are groups.
    size = positions[1:] if positions[:1] == (1,) else positions
    return LayerSpec(
        path=path,
        kind="dense",
        in_channels=groups * axes.contracted_size,
        out_channels=math.prod(axes.output_shape),
        input_size=size,
        output_size=size,
        kernel=(),
        stride=(),
        groups=groups,
        macs=output_values * axes.contracted_size,
        weights=math.prod(axes.shape),
    )


def _times(spec: LayerSpec, runs: int) -> LayerSpec:
    return dataclasses.replace(spec, macs=spec.macs * runs, runs=spec.runs * runs)


def _added(first: LayerSpec | None, again: LayerSpec) -> LayerSpec:
    """A layer that is called several times counts its weights once; later calls count by their MACs."""
    if first is None:
        return again
    return dataclasses.replace(
        first, macs=first.macs + again.macs, runs=first.runs * (first.macs + again.macs) / first.macs
    )


def _per_axis(size: int | Sequence[int], axes: int) -> tuple[int, ...]:
    return (size,) * axes if isinstance(size, int) else tuple(size)


class _Contraction(NamedTuple):
    """A convolution or dot product of a jaxpr.

    Attributes:
      path: path of its module.
      equation: the equation.
      runs: how often loops of known length run it.
      layer_call: number of the layer call that it belongs to, or None.
    """

    path: str
    equation: Any
    runs: int
    layer_call: int | None

    @property
    def is_product(self) -> bool:
        """Whether it is a dot product."""
        return self.equation.primitive.name == "dot_general"


def _contractions(jaxpr: Any, prefix: str = "", runs: int = 1) -> Iterator[_Contraction]:
    for equation in jaxpr.eqns:
        scope = "/".join(name for name in (prefix, str(equation.source_info.name_stack)) if name)
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            mark = re.search(rf"{_MARK}(\d+)", scope)
            yield _Contraction(module_path(scope), equation, runs, int(mark[1]) if mark else None)
        repeated = runs * equation.params["length"] if equation.primitive.name == "scan" else runs
        inner_jaxprs = list(jax.extend.core.jaxprs_in_params(equation.params))
        # Branches per platform are alternatives of one computation; the last is the default.
        for inner_jaxpr in inner_jaxprs[-1:] if equation.params.get("branches_platforms") else inner_jaxprs:
            yield from _contractions(inner_jaxpr, scope, repeated)


def contractions(jaxpr: Any) -> Iterator[tuple[str, Any]]:
    """The convolutions and dot products of a jaxpr, as pairs of module path and equation."""
    for found in _contractions(jaxpr):
        yield found.path, found.equation


def module_path(scope: str) -> str:
    """The module path of a name stack in a jaxpr, as in `"stage0/conv"`.

    Linen names scopes after modules, the model first; methods (`module.method`) and einsums (`->`) are left out, as are
    the marks of `survey`. A name in a transform, as in `vmap(mlp)`, stands for itself.
    """
    names = re.sub(r"\b(?:vmap|scan|remat|checkpoint|jvp|transpose)\(([^()/]*)\)", r"\1", scope).split("/")[1:]
    return "/".join(name for name in names if name and "->" not in name and "." not in name and _MARK not in name)


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
