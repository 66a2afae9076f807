"""Frozen networks: the codes and scales of a quantised network, made once and by one program, and their file.

Weights that straight-through training leaves on a rounding threshold have one code in one program and its neighbour in
another. What is measured, exported and deployed is therefore a frozen network, in which nothing is quantised twice.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from flax.traverse_util import empty_node
from jax import export
from jax.interpreters import partial_eval

from aqt_like import gradients, interception, packing, tensor_file
from aqt_like.formats import Format, FormatTable, format_table, parse_format, parse_layer_format
from aqt_like.granularity import Blocks
from aqt_like.layer_calls import entry_of, nested, split_repetition
from aqt_like.lifting import FORMATS
from aqt_like.packing import Packed
from aqt_like.quantized_layer import DEFAULT_QUANTIZER, FrozenLayer, Quantizer, frozen_layer
from aqt_like.quantized_model import QuantizedModel

KIND, VERSION = "frozen network", 1
_ARRAYS = (np.ndarray, np.generic, jax.Array, jax.ShapeDtypeStruct, float, int)

# So that `jax.export` takes a network as an argument.
for kind in (gradients.Codes, FormatTable):
    export.register_namedtuple_serialization(kind, serialized_name=f"aqt_like.{kind.__name__}")
export.register_pytree_node_serialization(
    FrozenLayer,
    serialized_name="aqt_like.FrozenLayer",
    serialize_auxdata=lambda aux: json.dumps(aux).encode(),
    deserialize_auxdata=lambda text: _tuples(json.loads(text)),
)


def _tuples(lists: Any) -> Any:
    """Nested lists as tuples."""
    return tuple(map(_tuples, lists)) if isinstance(lists, list) else lists


class FreezeError(ValueError):
    """Raised for what cannot be frozen; the message names it."""


class Kernel(NamedTuple):
    """The kernel of a layer.

    Attributes:
      packed: its codes and scales, with output channels last: the contracted axes first, then one axis for all outputs.
      shape: shape of the kernel as the layer multiplies it.
      outputs: the axes of `shape` that index output channels.
    """

    packed: Packed
    shape: tuple[int, ...]
    outputs: tuple[int, ...]


class Factor(NamedTuple):
    """The second factor of a product of two activations: it is quantised as it comes.

    Attributes:
      format: name of its format.
      clip_multiple: its clip threshold in units of its root mean square.
    """

    format: str
    clip_multiple: float


class Layer(NamedTuple):
    """A frozen layer.

    Attributes:
      format: its layer format, as in `int4` or `int4/int8`.
      weights: its kernel; of a `Product`, its second factor.
      input_format: name of the format of its input; unsigned if the input is never negative, fp32 if not quantised.
      input_scale: value of one unit of that format, times 2^−`input_exponent`.
      input_exponent: see `packing.Packed`.
    """

    format: str
    weights: Kernel | Factor
    input_format: str
    input_scale: float
    input_exponent: int


@dataclasses.dataclass(frozen=True)
class FrozenNetwork:
    """A network as its file holds it: all but the linen module.

    Attributes:
      layers: the quantised layers by path, in order of execution.
      variables: the other variables, as nested dictionaries of NumPy arrays.
      omitted: shape and type of the kernels that codes stand for, by path in the variables: nothing else reads them.
      about: what else is to be known about the network: anything that JSON can hold.
    """

    layers: dict[str, Layer] = dataclasses.field(repr=False)
    variables: dict[str, Any] = dataclasses.field(repr=False)
    omitted: dict[str, jax.ShapeDtypeStruct] = dataclasses.field(repr=False)
    about: dict[str, Any] = dataclasses.field(default_factory=dict)

    def bind(self, model: nn.Module, quantizer: Quantizer = DEFAULT_QUANTIZER) -> tuple[QuantizedModel, dict[str, Any]]:
        """The quantised model, and the variables for its `apply`.

        Codes are in `QuantizedModel.collection`. Kernels that they stand for are NaN among the variables, so that
        nothing can use them by mistake.

        Args:
          model: the linen module that was frozen.
          quantizer: the type of operands and the precision of other products; nothing else of it is used.
        """
        collection = nested({path: _multiplied(layer) for path, layer in self.layers.items()})
        formats = {path: layer.format for path, layer in self.layers.items()}
        flat = _flat(self.variables)
        flat |= {path: jnp.full(like.shape, jnp.nan, like.dtype) for path, like in self.omitted.items()}
        variables = _unflat({name: x if x is empty_node else jnp.asarray(x) for name, x in flat.items()})
        return QuantizedModel(model, formats, collection, quantizer), variables

    def save(self, path: pathlib.Path | str) -> None:
        """Writes the network to a safetensors file, atomically; see `docs/formats.md` for its contents.

        Raises:
          FreezeError: a variable is no array.
        """
        packed, entries = self._packed()
        scales = {f"input_scales/{name}": np.asarray(x.input_scale, np.float32) for name, x in self.layers.items()}
        flat = _flat(self.variables)
        others = {name: values for name, values in flat.items() if values is not empty_node}
        if clash := (packed.keys() | scales.keys()) & others.keys():
            raise FreezeError(f"variables with the names {sorted(clash)}, which are those of codes")
        manifest = {
            "kind": KIND,
            "version": VERSION,
            "layers": {name: _described(layer, entries.get(f"codes/{name}")) for name, layer in self.layers.items()},
            "empty": sorted(flat.keys() - others.keys()),
            "omitted": {name: [list(like.shape), jnp.dtype(like.dtype).name] for name, like in self.omitted.items()},
            "about": self.about,
        }
        tensor_file.save(path, {**packed, **scales, **others}, manifest)

    def _packed(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """The kernels' arrays and their descriptions; see `packing.to_arrays`."""
        kernels = {f"codes/{name}": layer.weights for name, layer in self.layers.items()}
        return packing.to_arrays({name: w.packed for name, w in kernels.items() if isinstance(w, Kernel)})

    @classmethod
    def load(cls, path: pathlib.Path | str) -> "FrozenNetwork":
        """Reads a file that `save` wrote.

        Raises:
          FileNotFoundError: there is no such file.
          packing.DamagedFileError: the file is not as it was written, or another one.
        """
        arrays, manifest = tensor_file.load(path, kind=KIND, version=VERSION)
        try:
            return cls._read(arrays, manifest)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise tensor_file.DamagedFileError(f"{path} lacks a part of a frozen network: {error!r}") from error

    @classmethod
    def _read(cls, arrays: dict[str, np.ndarray], manifest: dict[str, Any]) -> "FrozenNetwork":
        described = manifest["layers"]
        entries = {f"codes/{name}": entry["weights"] for name, entry in described.items()}
        packed = packing.from_arrays(arrays, {name: entry for name, entry in entries.items() if "shape" in entry})
        scales = {name: arrays[f"input_scales/{name}"] for name in described}
        ours = packed.keys() | {f"{name}.scale" for name in packed} | {f"input_scales/{name}" for name in described}
        others = {name: values for name, values in arrays.items() if name not in ours}
        return cls(
            {
                name: _layer(entry, packed.get(f"codes/{name}"), float(scales[name]))
                for name, entry in described.items()
            },
            _unflat(others | dict.fromkeys(manifest["empty"], empty_node)),
            {
                name: jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))
                for name, (shape, dtype) in manifest["omitted"].items()
            },
            manifest["about"],
        )

    def sizes(self) -> dict[str, int]:
        """Bytes in the file of the codes, their scales, and the other variables."""
        packed, entries = self._packed()
        codes = sum(packed[name].nbytes for name in entries)
        return {
            "codes": codes,
            "scales": sum(values.nbytes for values in packed.values()) - codes + 4 * len(self.layers),
            "others": sum(values.nbytes for values in jax.tree.leaves(self.variables)),
        }

    def float32_bytes(self) -> int:
        """Bytes of the same variables in float32."""
        omitted = sum(int(np.prod(like.shape)) for like in self.omitted.values())
        return 4 * (omitted + sum(values.size for values in jax.tree.leaves(self.variables)))


def _flat(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Variables by path, as in `params/stem/kernel`; a slash within a name, as `nn.WeightNorm` has, is `%2F`.

    An empty collection is `empty_node`.
    """
    flat: dict[tuple[str, ...], Any] = traverse_util.flatten_dict(variables, keep_empty_nodes=True)
    return {"/".join(part.replace("%", "%25").replace("/", "%2F") for part in path): x for path, x in flat.items()}


def _unflat(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The nested dictionaries of which `_flat` gave the leaves."""
    return traverse_util.unflatten_dict(
        {tuple(part.replace("%2F", "/").replace("%25", "%") for part in name.split("/")): x for name, x in flat.items()}
    )


def _described(layer: Layer, packed: Mapping[str, Any] | None) -> dict[str, Any]:
    weights = layer.weights
    own: dict[str, Any] = weights._asdict()
    if isinstance(weights, Kernel):
        own = {"kernel": weights.shape, "outputs": weights.outputs, **(packed or {})}
    return {
        "format": layer.format,
        "weights": own,
        "input": {"format": layer.input_format, "exponent": layer.input_exponent},
    }


def _layer(entry: Mapping[str, Any], packed: Packed | None, input_scale: float) -> Layer:
    """The layer that `_described` described."""
    weights = entry["weights"]
    return Layer(
        entry["format"],
        Factor(weights["format"], weights["clip_multiple"])
        if packed is None
        else Kernel(packed, tuple(weights["kernel"]), tuple(weights["outputs"])),
        entry["input"]["format"],
        input_scale,
        entry["input"]["exponent"],
    )


def _multiplied(layer: Layer) -> FrozenLayer:
    """What the layer multiplies."""
    if isinstance(layer.weights, Kernel):
        packed = layer.weights.packed
        weights = gradients.Codes(jnp.asarray(packing.unpack_values(packed)), jnp.asarray(packing.spread_scale(packed)))
    else:
        weights = _row(parse_format(layer.weights.format), layer.weights.clip_multiple)
    grid, _, _ = gradients.code_grid(_row(parse_format(layer.input_format)), jnp.ones(()))
    kernel = (layer.weights.shape, layer.weights.outputs) if isinstance(layer.weights, Kernel) else None
    return FrozenLayer(weights, grid, jnp.float32(layer.input_scale), kernel)


def _row(fmt: Format, clip_multiple: float = 1.0) -> FormatTable:
    return format_table([fmt], [clip_multiple]).row(0)


@functools.cache
def _exponent(fmt: Format) -> int:
    """The power of two by which codes of a format are multiplied before they are (`gradients.code_grid`)."""
    grid, _, _ = gradients.code_grid(_row(fmt), jnp.ones(()))
    return int(grid.smallest_exponent) - fmt.smallest_exponent


def freeze(
    network: QuantizedModel,
    variables: Mapping[str, Any],
    *args: Any,
    other_modes: Sequence[Mapping[str, Any]] = (),
    **kwargs: Any,
) -> FrozenNetwork:
    """Freezes a quantised model: one jitted program makes all codes and scales.

    Args:
      network: the model and the formats of its layers.
      variables: its variables, with float weights.
      *args: arguments of the model; of arrays, only shapes and types matter.
      other_modes: further keyword arguments under which the network is going to run: kernels that something else reads
        there are kept, too.
      **kwargs: passed to `model.apply`, as in `train=False`.

    Raises:
      FreezeError: the network is frozen already; the quantiser clips inputs or factors by functions of their own, or
        has an estimator without codes; a layer did not run, has no parameter `kernel`, or multiplies one that depends
        on the input or differs between its calls; a weight is NaN; or a variable is no array.
    """
    variables, traced, arrays = _trace(network, variables, args, kwargs)
    made = jax.device_get(traced.lower().compile()(variables, network.collection, arrays))
    if differing := [path for path, (_, alike) in made.items() if not alike]:
        raise FreezeError(f"{', '.join(differing)}: the calls of the layer multiply different kernels")
    layers = {
        path: _frozen(path, name, made[path][0], jax.device_get(entry_of(network.collection, path)), network)
        for path, name in network.formats.items()
    }
    whole = FrozenNetwork(layers, jax.tree.map(np.asarray, jax.device_get(variables)), {})
    modes = (kwargs, *({**kwargs, **mode} for mode in other_modes))
    return _without_unread_kernels(whole, network.model, args, modes)


def check_freezable(network: QuantizedModel, variables: Mapping[str, Any], *args: Any, **kwargs: Any) -> None:
    """Raises what `freeze` would, but for what only values show: a NaN, and kernels that differ between calls.

    Nothing is compiled: arrays among the variables and formats may be `jax.ShapeDtypeStruct`s.
    """
    _trace(network, variables, args, kwargs)


def _trace(
    network: QuantizedModel, variables: Mapping[str, Any], args: tuple, kwargs: dict[str, Any]
) -> tuple[dict[str, Any], jax.stages.Traced, dict[int, Any]]:
    """The variables that are frozen, and the program that makes codes, with its last arguments.

    Its result has, by path, the frozen layer and whether all its calls multiply the same kernel.
    """
    _check_quantizer(network)
    variables = {name: x for name, x in nn.meta.unbox(dict(variables)).items() if name not in (FORMATS, "calibration")}
    for name, leaf in _flat(variables).items():
        if leaf is not empty_node and not isinstance(leaf, _ARRAYS):
            raise FreezeError(f"{name} is a {type(leaf).__name__}: expected variables that are arrays")
        if jnp.issubdtype(dtype := getattr(leaf, "dtype", float), jax.dtypes.extended):
            raise FreezeError(f"{name} is of type {dtype}, which no file can hold: expected numbers")
    leaves, structure = jax.tree.flatten((args, kwargs))
    arrays = {i: leaf for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array | np.ndarray)}
    quantizer = network.quantizer

    def codes(variables: Any, collection: Any, arrays: Any) -> dict[str, tuple[FrozenLayer, jax.Array]]:
        args, kwargs = jax.tree.unflatten(structure, [arrays.get(i, leaf) for i, leaf in enumerate(leaves)])
        operands = interception.layer_operands(network.model, variables, *args, **kwargs)
        made = {}
        for path in network.formats:
            if path not in operands:
                raise FreezeError(f"{path} does not run under these arguments: expected those of `quantize_model`")
            found, clip = operands[path], quantizer.weight_clip_at(split_repetition(path)[0])
            made[path] = frozen_layer(entry_of(collection, path), found.weights, found.axes, clip), found.alike
            if found.axes is not None and _kernel_name(path) not in _flat(variables):
                raise FreezeError(f"{path} has no parameter 'kernel' of its own, but multiplies one: leave it in float")
        return made

    traced = jax.jit(codes).trace(variables, network.collection, arrays)
    _check_inputs_unread(traced, len(arrays), tuple(network.formats))
    return variables, traced, arrays


def _kernel_name(path: str) -> str:
    """The path of a layer's kernel among the variables."""
    return f"params/{split_repetition(path)[0]}/kernel"


def _check_quantizer(network: QuantizedModel) -> None:
    """Raises FreezeError for a network whose thresholds or estimator cannot be frozen."""
    quantizer = network.quantizer
    entries = jax.tree.leaves(network.collection, is_leaf=lambda entry: isinstance(entry, FrozenLayer))
    if any(isinstance(entry, FrozenLayer) for entry in entries):
        raise FreezeError("the network is frozen already")
    if quantizer.input_clip is not None or quantizer.factor_clip != DEFAULT_QUANTIZER.factor_clip:
        raise FreezeError("a quantiser with input_clip or factor_clip: thresholds that are functions cannot be frozen")
    if not isinstance(quantizer.estimator, gradients.Estimator):
        raise FreezeError("a quantiser whose estimator is a plain function: it has no codes")


def _check_inputs_unread(traced: jax.stages.Traced, inputs: int, paths: tuple[str, ...]) -> None:
    """Raises FreezeError if codes depend on the last `inputs` arguments of the program that makes them."""
    jaxpr = traced.jaxpr.jaxpr

    def depends(outputs: list[bool]) -> bool:
        _, is_read = partial_eval.dce_jaxpr(jaxpr, outputs)
        return any(is_read[len(is_read) - inputs :])

    if not depends([True] * len(jaxpr.outvars)):
        return
    made = {path: jax.tree.map(lambda _: False, out) for path, out in traced.out_info.items()}
    for path in paths:
        chosen = made | {path: jax.tree.map(lambda _: True, made[path])}
        if depends(jax.tree.leaves(chosen)):
            raise FreezeError(f"{path}: its kernel depends on the input of the model: leave it in float")


def _frozen(path: str, name: str, made: FrozenLayer, rows: interception.LayerFormats, network: QuantizedModel) -> Layer:
    """A layer on the host, from what the program made."""
    fmt = parse_layer_format(name)
    input_format = _named(rows.inputs, (fmt.inputs, fmt.inputs.unsigned_twin, parse_format("fp32")), path)
    weight_format = _named(rows.weights, (fmt.weights, parse_format("fp32")), path)
    if made.kernel is None:
        weights: Kernel | Factor = Factor(weight_format.name, float(rows.weights.clip_multiple))
    else:
        assert isinstance(made.weights, gradients.Codes)
        values, scale = map(np.asarray, made.weights)
        blocks = getattr(network.quantizer.weight_clip_at(split_repetition(path)[0]), "granularity", None)
        if isinstance(blocks, Blocks):
            scale = np.asarray(blocks.gather(jnp.asarray(scale)))
        else:
            blocks = None
        exponent = _exponent(weight_format)
        try:
            packed = packing.pack_values(values, scale, weight_format.name, blocks=blocks, exponent=exponent)
        except ValueError as error:
            raise FreezeError(f"{path}: {error}") from error
        weights = Kernel(packed, *made.kernel)
    return Layer(name, weights, input_format.name, float(made.input_scale), _exponent(input_format))


def _named(row: FormatTable, candidates: tuple[Format, ...], path: str) -> Format:
    """The one of these formats that a row is of.

    Raises:
      FreezeError: it is of none.
    """
    for fmt in candidates:
        if (int(row.bits), int(row.mantissa_bits), float(row.lowest)) == (fmt.bits, fmt.mantissa_bits, fmt.lowest):
            return fmt
    raise FreezeError(f"{path}: its formats are none of {', '.join(fmt.name for fmt in candidates)}")


def _without_unread_kernels(
    whole: FrozenNetwork, model: nn.Module, args: tuple, modes: Sequence[Mapping[str, Any]]
) -> FrozenNetwork:
    """The network without the kernels that nothing but their own layer reads in any mode: codes stand for them."""
    network, variables = whole.bind(model)
    flat = _flat(variables)
    names = [name for name, leaf in flat.items() if leaf is not empty_node]

    def outputs(*leaves: jax.Array) -> list[Any]:
        given = _unflat(flat | dict(zip(names, leaves, strict=True)))
        return [jax.tree.leaves(network.apply(given, *args, **mode)) for mode in modes]

    jaxpr = jax.make_jaxpr(outputs)(*(flat[name] for name in names)).jaxpr
    _, is_read = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    unread = {name for name, read in zip(names, is_read, strict=True) if not read}
    kernels = dict.fromkeys(map(_kernel_name, whole.layers))
    omitted = {name: jax.ShapeDtypeStruct(flat[name].shape, flat[name].dtype) for name in kernels if name in unread}
    others = _unflat({name: leaf for name, leaf in _flat(whole.variables).items() if name not in omitted})
    return dataclasses.replace(whole, variables=others, omitted=omitted)


def load_network(
    path: pathlib.Path | str, model: nn.Module, quantizer: Quantizer = DEFAULT_QUANTIZER
) -> tuple[QuantizedModel, dict[str, Any]]:
    """The quantised model in a file, and the variables for its `apply`: see `FrozenNetwork.bind`.

        network, variables = aqt_like.load_network("runs/digits/network.safetensors", model)
        logits = network.apply(variables, images, train=False)

    Raises:
      FileNotFoundError, DamagedFileError: see `FrozenNetwork.load`.
    """
    return FrozenNetwork.load(path).bind(model, quantizer)
