"""Frozen networks: the codes and scales of a quantised network, and the file that holds them.

What is measured, exported and deployed is a frozen network, in which nothing is quantised twice; `freezing` makes it.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from flax.traverse_util import empty_node
from jax import export

from aqt_like import gradients, packing, stored_activations, tensor_file
from aqt_like.formats import Format, FormatTable, format_table, parse_format
from aqt_like.layer_calls import Model, nested
from aqt_like.packing import Packed
from aqt_like.quantized_layer import DEFAULT_QUANTIZER, FrozenLayer, Quantizer
from aqt_like.quantized_model import QuantizedModel

KIND, VERSION = "frozen network", 1

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
      activations: name of the type in which activations are stored between layers (`stored_activations`).
    """

    layers: dict[str, Layer] = dataclasses.field(repr=False)
    variables: dict[str, Any] = dataclasses.field(repr=False)
    omitted: dict[str, jax.ShapeDtypeStruct] = dataclasses.field(repr=False)
    about: dict[str, Any] = dataclasses.field(default_factory=dict)
    activations: str = "float32"

    def bind(self, model: Model, quantizer: Quantizer = DEFAULT_QUANTIZER) -> tuple[QuantizedModel, dict[str, Any]]:
        """The quantised model, and the variables for its `apply`.

        Codes are in `QuantizedModel.collection`. Kernels that they stand for are NaN among the variables, so that
        nothing can use them by mistake.

        Args:
          model: the linen module that was frozen.
          quantizer: the type of operands and the precision of other products; nothing else of it is used.
        """
        collection = nested({path: _multiplied(layer) for path, layer in self.layers.items()})
        formats = {path: layer.format for path, layer in self.layers.items()}
        flat = flat_variables(self.variables)
        flat |= {path: jnp.full(like.shape, jnp.nan, like.dtype) for path, like in self.omitted.items()}
        variables = nested_variables({name: x if x is empty_node else jnp.asarray(x) for name, x in flat.items()})
        quantizer = quantizer._replace(activations=jnp.dtype(self.activations))
        return QuantizedModel(model, formats, collection, quantizer), variables

    def save(self, path: pathlib.Path | str) -> None:
        """Writes the network to a safetensors file, atomically; see `docs/formats.md` for its contents.

        Raises:
          FreezeError: a variable is no array.
        """
        packed, entries = self._packed()
        scales = {f"input_scales/{name}": np.asarray(x.input_scale, np.float32) for name, x in self.layers.items()}
        flat = flat_variables(self.variables)
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
            "activations": self.activations,
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
            nested_variables(others | dict.fromkeys(manifest["empty"], empty_node)),
            {
                name: jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))
                for name, (shape, dtype) in manifest["omitted"].items()
            },
            manifest["about"],
            stored_activations.checked(manifest.get("activations", "float32")),  # Earlier versions do not say.
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


def flat_variables(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Variables by path, as in `params/stem/kernel`; a slash within a name, as `nn.WeightNorm` has, is `%2F`.

    An empty collection is `empty_node`.
    """
    flat: dict[tuple[str, ...], Any] = traverse_util.flatten_dict(variables, keep_empty_nodes=True)
    return {"/".join(part.replace("%", "%25").replace("/", "%2F") for part in path): x for path, x in flat.items()}


def nested_variables(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The nested dictionaries of which `flat_variables` gave the leaves."""
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
        weights = format_row(parse_format(layer.weights.format), layer.weights.clip_multiple)
    grid, _, _ = gradients.code_grid(format_row(parse_format(layer.input_format)), jnp.ones(()))
    kernel = (layer.weights.shape, layer.weights.outputs) if isinstance(layer.weights, Kernel) else None
    return FrozenLayer(weights, grid, jnp.float32(layer.input_scale), kernel)


def format_row(fmt: Format, clip_multiple: float = 1.0) -> FormatTable:
    """The row of one format."""
    return format_table([fmt], [clip_multiple]).row(0)


def load_network(
    path: pathlib.Path | str, model: Model, quantizer: Quantizer = DEFAULT_QUANTIZER
) -> tuple[QuantizedModel, dict[str, Any]]:
    """The quantised model in a file, and the variables for its `apply`: see `FrozenNetwork.bind`.

        network, variables = aqt_like.load_network("runs/digits/network.safetensors", model)
        logits = network.apply(variables, images, train=False)

    Raises:
      FileNotFoundError, DamagedFileError: see `FrozenNetwork.load`.
    """
    return FrozenNetwork.load(path).bind(model, quantizer)
