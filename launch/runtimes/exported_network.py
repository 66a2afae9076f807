"""What a network is exported as: the contents of files by target and form, before any is written."""

import itertools
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from aqt_like.formats import parse_format
from aqt_like.frozen_network import FrozenNetwork, Kernel, Layer
from aqt_like.quantized_layer import Quantizer
from launch import data
from launch.data.contract import on_device
from launch.runtimes import serialized_programs
from launch.runtimes.engines import RuntimeMissingError
from launch.training.experiment import Experiment
from launch.training.run_directory import NETWORK
from launch.training.settings import ConfigError

FILES = {"onnx": "model.onnx", "stablehlo": "model.stablehlo", "packed": NETWORK, "qonnx": "model.qonnx"}
USUAL = ("onnx", "stablehlo", "packed")
ANY = "any"
RANGE_EXAMPLES = 512  # of the training split, for the ranges of the fast form


class Pixels(NamedTuple):
    """Inputs that files take as images are stored, uint8, and normalise themselves.

    Attributes:
      mean: float32[channels], of pixels of 0…255.
      deviation: float32[channels].
    """

    mean: np.ndarray
    deviation: np.ndarray

    def normalized(self, images: Any) -> Any:
        """The inputs of the network, float32, of images of uint8."""
        return (images.astype(np.float32) - self.mean) / self.deviation

    def stored(self, inputs: np.ndarray) -> np.ndarray:
        """The images that inputs of the network were made from.

        Raises:
          ConfigError: they were not made from images.
        """
        images = np.rint(np.float64(inputs) * self.deviation + self.mean)
        if not (images == np.clip(images, 0, 255)).all() or np.abs(self.normalized(images) - inputs).max() > 1e-4:
            raise ConfigError("--input=uint8: the examples are not normalised images of uint8: expected --input=float")
        return images.astype(np.uint8)


class Subject(NamedTuple):
    """The network to export.

    Attributes:
      directory: of its run.
      experiment: of its run.
      network: as it is in the file.
      batch: a number of examples, or `ANY`.
      pixels: of `--input=uint8`; None if files take inputs as the network does.
    """

    directory: pathlib.Path
    experiment: Experiment
    network: FrozenNetwork
    batch: int | str
    pixels: Pixels | None = None

    @property
    def quantizer(self) -> Quantizer:
        """That of the run, with float32 operands: they are exact on every device at this precision."""
        quantizer = self.experiment.search.quantizer
        names = [name for layer in self.network.layers.values() for name in formats_of(layer)]
        exact = all(parse_format(name).significant_bits <= 8 for name in names)
        return quantizer._replace(operands=jnp.float32, precision=quantizer.precision if exact else "highest")

    @property
    def example(self) -> jax.ShapeDtypeStruct:
        """Shape and type of an input."""
        example = self.experiment.source.example
        size = export.symbolic_shape("batch")[0] if self.batch == ANY else self.batch
        return jax.ShapeDtypeStruct((size, *example.shape), np.uint8 if self.pixels else example.dtype)

    def prepared(self, inputs: Any) -> Any:
        """What the network takes, of the inputs of a file."""
        return self.pixels.normalized(inputs) if self.pixels else inputs

    def taken(self, inputs: np.ndarray) -> np.ndarray:
        """What a file takes, of the inputs of the network."""
        return self.pixels.stored(inputs) if self.pixels else inputs


class Made(NamedTuple):
    """What was made of a network.

    Attributes:
      contents: of the files, by target.
      containers: how a graph holds the operands of each layer, by target and path.
    """

    contents: dict[str, bytes]
    containers: dict[str, dict[str, list[str]]]


class Form(NamedTuple):
    """A way to compute a network.

    Attributes:
      arithmetic: what it is, for readers of export.json.
      targets: those that have it.
      graph: `(Subject) -> Exported`, the graph of onnx that is traced.
      finished: `(Subject, Exported, Dataset) -> Exported`, the one that is written.
    """

    arithmetic: str
    targets: tuple[str, ...]
    graph: Callable[[Subject], Any]
    finished: Callable[[Subject, Any, data.Dataset], Any]


def formats_of(layer: Layer) -> tuple[str, str]:
    """The names of the formats of a layer's weights, or second factor, and of its input."""
    weights = layer.weights
    return (weights.packed.format if isinstance(weights, Kernel) else weights.format), layer.input_format


def _graph(subject: Subject, network: Any, variables: dict[str, Any], operands: Any) -> Any:
    """The graph of `network.apply`."""
    from launch.runtimes import onnx_graphs

    def function(x: jax.Array) -> jax.Array:
        return network.apply(variables, subject.prepared(x))

    name = subject.experiment.config.data.name
    return onnx_graphs.export_with_containers(function, subject.example, name=name, operands=operands)


def _exact_graph(subject: Subject) -> Any:
    from launch.runtimes.onnx_formats import EXACT

    return _graph(subject, *subject.network.bind(subject.experiment.search.model, subject.quantizer), EXACT)


def _as_it_is(subject: Subject, graph: Any, dataset: data.Dataset) -> Any:
    del subject, dataset
    return graph


def _graph_in_real_units(subject: Subject, operands: Any) -> Any:
    from launch.runtimes import real_units

    bound = real_units.bind(subject.network, subject.experiment.search.model, subject.quantizer)
    return _graph(subject, *bound, operands)


def _float_graph(subject: Subject) -> Any:
    from launch.runtimes import fast_graphs

    graph = _graph_in_real_units(subject, fast_graphs.CLIPPED)
    fast_graphs.layers_in_float(subject.network)  # refuses, before data are read
    return graph


def _qonnx_graph(subject: Subject) -> Any:
    from launch.runtimes import qonnx_graphs

    return _graph_in_real_units(subject, qonnx_graphs.operands(subject.network))


def in_float32(subject: Subject) -> bytes:
    """The graph of the same model in float32, for its size and speed: numbers stand for the weights that are codes."""
    from launch.runtimes import fast_graphs

    _, variables = subject.network.bind(subject.experiment.search.model, subject.quantizer)
    numbers = jax.tree.map(lambda x: jnp.nan_to_num(x, nan=0.01), variables)
    graph = _graph(subject, subject.experiment.search.model, numbers, fast_graphs.CLIPPED)
    return graph.model.SerializeToString()


def _range_batches(subject: Subject, dataset: data.Dataset) -> Iterator[np.ndarray]:
    """Training examples as they are, in batches that the graph takes."""
    size = subject.experiment.config.batch_size if subject.batch == ANY else int(subject.batch)
    first_step = subject.experiment.search.total_steps
    stream = dataset.train_batches("train", batch_size=size, first_step=first_step, augmented=False)
    batches = map(on_device(dataset), itertools.islice(stream, -(-RANGE_EXAMPLES // size)))
    return (subject.taken(np.asarray(batch["input"])) for batch in batches)


def _quantized_graph(subject: Subject, graph: Any, dataset: data.Dataset) -> Any:
    from launch.runtimes import fast_graphs

    return fast_graphs.quantized(graph, subject.network, _range_batches(subject, dataset))


FORMS = {
    "exact": Form(
        "codes are multiplied, and the result by the scale of the input and by those of weights",
        (*USUAL, "qonnx"),
        _exact_graph,
        _as_it_is,
    ),
    "fast": Form(
        "not that of the network measured: 8 bits with ranges from training data, and normalisation in the weights",
        ("onnx",),
        _float_graph,
        _quantized_graph,
    ),
}


def read_pixels(network: FrozenNetwork) -> Pixels:
    """How the network's inputs are made from images.

    Raises:
      ConfigError: they are not, as far as its file tells.
    """
    normalization = network.about.get("data", {}).get("normalization")
    if not normalization or not normalization["x"].startswith("pixels"):
        told = normalization["x"] if normalization else "as the data have them"
        raise ConfigError(f"--input=uint8: the inputs of the network are {told}: expected those of pixels")
    mean, deviation = (np.asarray(normalization[key], np.float32) for key in ("mean", "deviation"))
    return Pixels(mean, deviation)


def make(
    subject: Subject, form: Form, targets: Sequence[str], open_data: Callable[[], data.Dataset]
) -> tuple[Made, data.Dataset]:
    """The contents of files, and the data, which are opened once the network is known to have a counterpart.

    Raises:
      ConfigError: the model cannot be traced for any batch, or its activations have no counterpart.
      ExportError: an operation has no counterpart.
      RuntimeMissingError: a package is not installed.
    """
    contents, graphs = {}, {}
    for target in targets:
        try:
            if target == "packed":
                contents[target] = (subject.directory / NETWORK).read_bytes()
            elif target == "stablehlo":
                model, prepared = subject.experiment.search.model, subject.prepared
                contents[target] = serialized_programs.serialize(
                    subject.network, model, subject.quantizer, subject.example, prepared
                )
            elif (stored := subject.network.activations) != "float32":
                raise ConfigError(
                    f"--to={target}: the run stored its activations in {stored}, in which its runtimes do not add or "
                    "normalise on CPUs: expected --to=stablehlo,packed"
                )
            else:
                graphs[target] = _qonnx_graph(subject) if target == "qonnx" else form.graph(subject)
        except ImportError as error:
            raise RuntimeMissingError(
                f"--to={target} needs {error.name}: pip install -r requirements-devices.txt"
            ) from error
        except (TypeError, jax.errors.InconclusiveDimensionOperation) as error:
            raise ConfigError(
                f"--to={target} --batch={subject.batch}: the model cannot be traced so: {error}. For any batch, it has "
                "to take sizes from x.shape, not len(x); --batch=1 exports it for single examples"
            ) from error
    dataset = open_data()
    if "onnx" in graphs:
        graphs["onnx"] = form.finished(subject, graphs["onnx"], dataset)
    contents |= {target: graph.model.SerializeToString() for target, graph in graphs.items()}
    return Made(contents, {target: graph.containers for target, graph in graphs.items()}), dataset
