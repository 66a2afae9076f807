"""Workloads: the layers of a model and what is in none, from an abstract trace that computes nothing."""

import dataclasses
import math
import numbers
import re
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util

from aqt_like.layer_calls import Model, Product, is_layer_call, layer_input, repetition_paths, split_repetition
from aqt_like.lifting import OBSERVED, loop_shapes, repeated_with_params
from aqt_like.quantized_layer import kernel_seen
from hwcost.contractions import Contraction, contractions
from hwcost.layer_spec import LayerCall, LayerSpec, added, layer_spec, product, product_call, times

Workload = tuple[LayerSpec, ...]


class Outside(NamedTuple):
    """A computation in no listed layer: its place in the model, and its MACs for one example."""

    path: str
    macs: int


class Survey(NamedTuple):
    """What a model computes for one example.

    Attributes:
      layers: the listed layers.
      outside: what is in no listed layer, by place: tied heads, parameters of the model's own, ignored layers.
    """

    layers: Workload
    outside: tuple[Outside, ...]

    def only(self, listed: Sequence[LayerSpec]) -> "Survey":
        """The survey with fewer layers; the others are outside."""
        paths = {layer.path for layer in listed}
        left_out = [Outside(layer.path, layer.macs) for layer in self.layers if layer.path not in paths]
        return Survey(tuple(layer for layer in self.layers if layer.path in paths), (*self.outside, *left_out))

    def remark(self) -> str:
        """A line about the MACs outside of the listed layers, see `remark`; empty if there are none."""
        return remark(self.layers_macs, self.outside)

    def figures(self) -> dict[str, Any]:
        """What is outside, for JSON: its MACs, their share of all MACs, and the places, each with path and MACs."""
        macs = sum(place.macs for place in self.outside)
        return {
            "macs": macs,
            "share": macs / (self.layers_macs + macs),
            "places": [place._asdict() for place in self.outside],
        }

    @property
    def layers_macs(self) -> int:
        """The MACs of the listed layers."""
        return sum(layer.macs for layer in self.layers)


def remark(inside: int, outside: Sequence[Outside]) -> str:
    """A line about the MACs in no listed layer, their share and the largest places; empty if there are none.

    Args:
      inside: MACs of the listed layers.
      outside: the places outside of them.
    """
    missing = sum(place.macs for place in outside)
    if not missing:
        return ""
    largest = sorted(outside, key=lambda place: -place.macs)[:3]
    places = ", ".join(f"{place.path or 'the model itself'} ({place.macs:,})" for place in largest)
    more = f" and {len(outside) - 3} more places" if len(outside) > 3 else ""
    return (
        f"{missing:,} of {inside + missing:,} MACs ({missing / (inside + missing):.1%}) are in no listed layer and "
        f"stay in float, unpriced: {places}{more}"
    )


def trace(
    model: Model,
    example: Any,
    *,
    dtype: Any = jnp.float32,
    ignored: Sequence[str] = (),
    products: bool = False,
    **kwargs: Any,
) -> Workload:
    """The layers of `model`, in order of execution, for one example; see `survey` for arguments and errors."""
    return survey(model, example, dtype=dtype, ignored=ignored, products=products, **kwargs).layers


def survey(
    model: Model,
    example: Any,
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
      model: any linen module called as `model(x, **kwargs)`, or what has its `init` and `apply`.
      example: shape of one example, without batch axis; or x of one example as a structure of `jax.ShapeDtypeStruct`s.
      dtype: dtype of an example that is given as a shape.
      ignored: regular expressions; layers whose path matches one are left out.
      products: whether to append products of two activations, as in attention. A product in a `Product` module has its
        path; any other has the path of its module and a number.
      **kwargs: passed to the model.

    Raises:
      ValueError: the model has no layer that can be quantised, or one whose input has too few axes; an expression in
        `ignored` matches no path; or a size is 0, or too large.
    """
    places: list[str] = []
    calls: dict[int, LayerSpec | None] = {}

    def record(call: Any, args: tuple, call_kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        module, number = context.module, len(places)
        places.append("/".join(module.path))
        if not is_layer_call(context):
            with jax.named_scope(f"{_PLACE}{number}"):
                return call(*args, **call_kwargs)
        with jax.named_scope(f"{_PLACE}{number}/{_LAYER}{number}"), kernel_seen(module, args, call_kwargs) as seen:
            y = call(*args, **call_kwargs)
        if isinstance(module, Product):
            calls[number] = product_call(places[number], *args, **call_kwargs)
        else:
            calls[number] = layer_spec(
                LayerCall(module, seen[1], layer_input(module, args, call_kwargs).shape, y.shape)
            )
        if module.is_mutable_collection(OBSERVED):
            module.put_variable(OBSERVED, f"{_LAYER}{number}", jnp.zeros((0,)))
        return y

    keys = {name: jax.random.key(0) for name in ("params", "dropout")}
    x = _alone(example, dtype)
    try:
        variables = jax.eval_shape(lambda x: model.init(keys, x, **kwargs), x)
    except ArithmeticError as error:
        sizes = ", ".join(str(leaf.shape[1:]) for leaf in jax.tree.leaves(x))
        raise ValueError(f"the model on {sizes}: {error}: expected sizes above 0") from error
    mutable = [*(name for name in variables if name != "params"), OBSERVED]

    def run(variables: Any, x: Any) -> Any:
        with repeated_with_params(), nn.intercept_methods(record):
            return model.apply(variables, x, mutable=mutable, rngs=keys, **kwargs)[1].get(OBSERVED, {})

    marks: Any
    closed_jaxpr, marks = jax.make_jaxpr(run, return_shape=True)(variables, x)
    shapes: dict[tuple[str, ...], Any] = traverse_util.flatten_dict(marks)
    runs = {int(path[-1].removeprefix(_LAYER)): Runs.of(mark.shape) for path, mark in shapes.items()}
    inside, elsewhere = _by_call(list(contractions(closed_jaxpr.jaxpr)), runs)
    layers: dict[str, LayerSpec] = {}
    for number in sorted(runs):
        if (one_run := calls[number]) is None:
            continue
        spec = _with_all_runs(one_run, runs[number], inside[number])
        for path in repetition_paths(spec.path, runs[number].repetitions):
            layers[path] = added(layers.get(path), dataclasses.replace(spec, path=path))
    named_products = [spec for spec in layers.values() if spec.kind == "product"]
    counted = [spec for spec in layers.values() if spec.kind != "product"]
    if not counted:
        told = remark(0, _by_layer([Outside(_place(part.scope, places), part.macs * part.runs) for part in elsewhere]))
        hint = (
            f": {told}. Products with parameters of a model's own are layers as nn.Dense or nn.Einsum" if told else ""
        )
        raise ValueError(f"the model has no layer of a kind that can be quantised{hint}")
    for pattern in ignored:
        if not any(re.search(pattern, spec.path) for spec in counted):
            paths = ", ".join(spec.path for spec in counted)
            raise ValueError(f"{pattern!r} is in no layer's path; there are {paths}")
    counted = [spec for spec in counted if not any(re.search(pattern, spec.path) for pattern in ignored)]
    unnamed = [part for part in elsewhere if products and part.is_product]
    numbered = [
        times(product(f"{_place(part.scope, places)}:product{index}", part), part.runs)
        for index, part in enumerate(unnamed, start=1)
    ]
    left_out = Survey(tuple(layers.values()), ()).only([*counted, *(named_products if products else ())]).outside
    unlisted = [
        *left_out,
        *(
            Outside(_place(part.scope, places), part.macs * part.runs)
            for part in elsewhere
            if not (products and part.is_product)
        ),
    ]
    return Survey((*counted, *(named_products if products else ()), *numbered), _by_layer(unlisted))


def _alone(example: Any, dtype: Any) -> Any:
    """Shapes and types of a batch of one example; see `survey`."""
    if isinstance(example, tuple | list) and all(isinstance(size, numbers.Integral) for size in example):
        example = jax.ShapeDtypeStruct(tuple(example), dtype)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype), example)


class Runs(NamedTuple):
    """How often loops run a layer: as a shape with parameters of its own, and how often with each."""

    repetitions: tuple[int, ...]
    shared: int

    @classmethod
    def of(cls, boundary: tuple[int, ...]) -> "Runs":
        """The runs from the shape of an array of size 0 that loops stacked (`aqt_like.lifting`)."""
        repetitions, shared = loop_shapes(boundary)
        return cls(repetitions, math.prod(shared))


# Marks in the name stack: of a call of any module, and inside, of a call of a layer.
_PLACE, _LAYER = "surveyed_module_", "surveyed_layer_"


def _by_call(
    found: Sequence[Contraction], calls: Collection[int]
) -> tuple[dict[int, list[Contraction]], list[Contraction]]:
    """The contractions in each of these layer calls, by number, and those in none of them."""
    inside: dict[int, list[Contraction]] = {number: [] for number in calls}
    elsewhere = []
    for contraction in found:
        mark = re.search(rf"{_LAYER}(\d+)", contraction.scope)
        inside.get(int(mark[1]) if mark else -1, elsewhere).append(contraction)
    return inside, elsewhere


def _with_all_runs(one_run: LayerSpec, runs: Runs, found: Sequence[Contraction]) -> LayerSpec:
    """A layer with all its runs, from one and from the contractions of all."""
    spec = times(one_run, runs.shared)
    # A `jax.vmap` or `lax.scan` in the model, of which Flax does not know, runs the layer more often than it says.
    expected = spec.macs * math.prod(runs.repetitions)
    # One with unshared weights is a product of patches, which a convolution gathers.
    macs = sum(part.macs * part.runs for part in found if part.is_product or spec.kind != "conv_local")
    return times(spec, max(round(macs / expected), 1)) if expected else spec


def _by_layer(places: Sequence[Outside]) -> tuple[Outside, ...]:
    """The places, with the repetitions of a layer as one."""
    macs: dict[str, int] = {}
    for place in places:
        layer = split_repetition(place.path)[0]
        macs[layer] = macs.get(layer, 0) + place.macs
    return tuple(Outside(*entry) for entry in macs.items())


def _place(scope: str, places: Sequence[str]) -> str:
    """The path of the innermost module in a name stack."""
    numbers = re.findall(rf"{_PLACE}(\d+)", scope)
    return places[int(numbers[-1])] if numbers else ""
