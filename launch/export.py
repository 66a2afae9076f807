"""Exports the network of a finished run to files that runtimes execute with the same answers, and checks them.

    python -m launch.export DIR [--to=onnx,stablehlo,packed] [--form=exact] [--batch=any] --out=OUT

* packed: network.safetensors as it is.
* onnx: model.onnx, in which codes are multiplied and scaled afterwards, as in the run; for ONNX Runtime and OpenVINO.
* stablehlo: model.stablehlo, for `jax.export.deserialize` on cpu, cuda and tpu, with packed codes inside.

OUT gets export.json as well, which describes the network, its inputs and the files, and with onnx run.py, which needs
no JAX. Each file is run on up to 10,000 test examples in each runtime that is installed, in batches and, with
--batch=any, 100 of them alone. If more than 0.1 % of the decisions differ from the network's, the file is renamed to
*.failed and the command fails.
"""

import argparse
import itertools
import math
import pathlib
import shutil
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

if not __package__:  # run as a file: import from the folder of launch/ and from the current one
    sys.path[:1] = [str(pathlib.Path(__file__).parents[1]), ""]

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from rich.console import Console

from aqt_like.formats import parse_format
from aqt_like.frozen_network import FrozenNetwork, Kernel
from aqt_like.quantized_layer import Quantizer
from fliqs_jax.evaluation import make_logits
from fliqs_jax.quality import Quality
from launch import data, ending
from launch.one_writer import only_writer
from launch.runtimes import self_check, serialized_programs
from launch.runtimes.engines import RuntimeMissingError
from launch.training import finished, trial_run
from launch.training.experiment import Experiment
from launch.training.provenance import file_digest
from launch.training.run_directory import NETWORK, write_json
from launch.training.run_summary import environment_summary
from launch.training.settings import ConfigError

FILES = {"onnx": "model.onnx", "stablehlo": "model.stablehlo", "packed": NETWORK}
DESCRIPTION, RUN = "export.json", "run.py"
ANY = "any"
MOST_EXAMPLES, ALONE = 10_000, 100


class Subject(NamedTuple):
    """The network to export.

    Attributes:
      directory: of its run.
      experiment: of its run.
      network: as it is in the file.
      batch: a number of examples, or `ANY`.
    """

    directory: pathlib.Path
    experiment: Experiment
    network: FrozenNetwork
    batch: int | str

    @property
    def quantizer(self) -> Quantizer:
        """That of the run, with float32 operands: they are exact on every device at this precision."""
        quantizer = self.experiment.search.quantizer
        names = [name for layer in self.network.layers.values() for name in _formats(layer)]
        exact = all(parse_format(name).significant_bits <= 8 for name in names)
        return quantizer._replace(operands=jnp.float32, precision=quantizer.precision if exact else "highest")

    @property
    def example(self) -> jax.ShapeDtypeStruct:
        """Shape and type of an input."""
        example = self.experiment.source.example
        size = export.symbolic_shape("batch")[0] if self.batch == ANY else self.batch
        return jax.ShapeDtypeStruct((size, *example.shape), example.dtype)


def _formats(layer: Any) -> tuple[str, str]:
    """The names of the formats of a layer's weights, or second factor, and of its input."""
    weights = layer.weights
    return (weights.packed.format if isinstance(weights, Kernel) else weights.format), layer.input_format


def _make_onnx(subject: Subject) -> tuple[bytes, dict[str, list[str]]]:
    """The graph, and how it holds operands.

    Raises:
      ExportError: an operation has no counterpart.
    """
    try:
        from launch.runtimes import onnx_graphs
    except ImportError as error:
        raise RuntimeMissingError(f"--to=onnx needs {error.name}: pip install -r requirements-devices.txt") from error
    if subject.network.activations != "float32":
        raise ConfigError(
            f"--to=onnx: the run stored its activations in {subject.network.activations}, of which ONNX Runtime "
            "adds and multiplies nothing on CPUs: expected --to=stablehlo,packed"
        )
    network, variables = subject.network.bind(subject.experiment.search.model, subject.quantizer)
    exported = onnx_graphs.export_with_containers(
        lambda x: network.apply(variables, x), subject.example, name=subject.experiment.config.data.name
    )
    return exported.model.SerializeToString(), exported.containers


def _make(subject: Subject, targets: Sequence[str]) -> tuple[dict[str, bytes], dict[str, list[str]]]:
    """The files' contents by target, before any is written, and how the graph holds operands.

    Raises:
      ConfigError: the model cannot be traced for any batch.
    """
    made, containers = {}, {}
    for target in targets:
        try:
            if target == "packed":
                made[target] = (subject.directory / NETWORK).read_bytes()
            elif target == "onnx":
                made[target], containers = _make_onnx(subject)
            else:
                made[target] = serialized_programs.serialize(
                    subject.network, subject.experiment.search.model, subject.quantizer, subject.example
                )
        except (TypeError, jax.errors.InconclusiveDimensionOperation) as error:
            raise ConfigError(
                f"--to={target} --batch={subject.batch}: the model cannot be traced so: {error}. For any batch, it has "
                "to take sizes from x.shape, not len(x); --batch=1 exports it for single examples"
            ) from error
    return made, containers


def _known(subject: Subject, dataset: data.Dataset, size: int, most: int) -> tuple[self_check.Known, list[data.Batch]]:
    """Up to `most` test examples in batches, and the outputs of the network as the run evaluates it."""
    batches = list(itertools.islice(dataset.eval_batches("test", batch_size=size), math.ceil(most / size)))
    variables = finished.variables_of(subject.network, subject.experiment)
    logits = jax.jit(make_logits(subject.experiment.search))
    inputs = [batch["input"] for batch in batches]
    expected = [np.asarray(logits(variables, x), np.float32) for x in inputs]
    real = [np.asarray(np.any(batch["label"].reshape(len(batch["label"]), -1) >= 0, axis=1)) for batch in batches]
    return self_check.Known(inputs, expected, real), batches


def _quality(quality: Quality, outputs: Sequence[Any], batches: Sequence[data.Batch]) -> float:
    """The quality of the run's kind that outputs have."""
    statistics = [
        jax.device_get(quality.statistics(jnp.asarray(logits), jax.tree.map(jnp.asarray, batch)))
        for logits, batch in zip(outputs, batches, strict=True)
    ]
    return round(float(quality.value(quality.joined(statistics))), 6)


def _check(
    subject: Subject, dataset: data.Dataset, files: Sequence[pathlib.Path], console: Console
) -> dict[str, list[dict[str, Any]]]:
    """What each runtime makes of each file, by name of the file."""
    size = subject.experiment.config.valid_batch_size if subject.batch == ANY else int(subject.batch)
    known = {False: _known(subject, dataset, size, MOST_EXAMPLES)}
    if subject.batch == ANY:
        known[True] = _known(subject, dataset, 1, ALONE)
    quality, found = subject.experiment.search.quality, {}
    for file in files:
        found[file.name] = []
        for name, start in self_check.runtimes_of(file):
            try:
                runner = start(file)
                outputs = {alone: [runner.run(x) for x in expected.inputs] for alone, (expected, _) in known.items()}
            except Exception as error:  # Runtimes raise whatever they like.
                found[file.name].append({"runtime": name, "error": " ".join(str(error).split())})
                console.print(f"{file.name}: {name} cannot run it: {error}")
                continue
            for alone, (expected, batches) in known.items():
                told = {"runtime": runner.runtime, **self_check.compare(outputs[alone], expected)}
                if not alone:
                    told[quality.name] = _quality(quality, outputs[alone], batches)
                    told[f"{quality.name}_of_the_network"] = _quality(quality, expected.expected, batches)
                    told["integer_kernels"] = runner.integer_kernels
                found[file.name].append(told)
                _tell(file.name, told, quality.name, console)
    return found


def _tell(name: str, told: dict[str, Any], quality: str, console: Console) -> None:
    """Prints the result of a check."""
    measured = f", {quality} {told[quality]:.2%}" if quality in told else ""
    kernels = told.get("integer_kernels")
    integer = f", {kernels[0]} of {kernels[1]} products in integers" if kernels else ""
    differing = f"{len(told['differing'])} of {told['decisions']:,} decisions differ"
    logits = f"logits by {told['largest_difference']:.1e} at most ({told['median_difference']:.1e} median)"
    console.print(f"{name} in {told['runtime']}, batch {told['batch']}: {differing}, {logits}{measured}{integer}")
    for each in told["differing"]:
        console.print(
            f"  example {each['example']}: margin {each['margin']:.2g}, logits differ by {each['difference']:.2g}"
        )


def _described_layers(network: FrozenNetwork, containers: dict[str, list[str]]) -> dict[str, Any]:
    """Formats and scales of all layers, and what they are in the graph, if there is one."""
    layers = {}
    for path, layer in network.layers.items():
        weight_format, input_format = _formats(layer)
        weights: dict[str, Any] = {"format": weight_format}
        if isinstance(layer.weights, Kernel):
            weights["scales"] = np.asarray(layer.weights.packed.scale, np.float64).ravel().tolist()
        else:
            weights["clip_multiple"] = layer.weights.clip_multiple
        layers[path] = {"input": {"format": input_format, "scale": layer.input_scale}, "weights": weights}
        for operand, container in zip(("input", "weights"), containers.get(path, ()), strict=False):
            layers[path][operand]["in_onnx"] = container
    return layers


def _described_file(path: pathlib.Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": file_digest(path)}


def export_run(
    directory: pathlib.Path,
    out: pathlib.Path,
    console: Console,
    *,
    targets: Sequence[str],
    batch: int | str,
    **changes: Any,
) -> None:
    """Exports the network of a finished run and checks the files.

    Args:
      directory: run directory.
      out: where files are written; it is created.
      console: where the checks are told.
      targets: of `FILES`.
      batch: number of examples that the files take at once, or `ANY`.
      **changes: keys of the run's config to change.

    Raises:
      ConfigError, RuntimeMissingError, ExportError, DamagedFileError: nothing was written.
      ValueError: more decisions differ than an exact network may have; the files are there as `*.failed`.
    """
    if out.is_file() or out.resolve() == directory.resolve():
        raise ConfigError(f"--out={out}: expected a directory for the files, not a file and not that of the run")
    experiment = finished.read_experiment(directory, **changes)
    if not isinstance(experiment.source.example, jax.ShapeDtypeStruct):
        raise ConfigError(f"{directory}: networks of several inputs are not exported; their file is {NETWORK}")
    subject = Subject(directory, experiment, finished.read_network(directory, experiment), batch)
    made, containers = _make(subject, targets)
    dataset = trial_run.open_data(experiment)
    with only_writer(out, console.print):
        for target, contents in made.items():
            (out / FILES[target]).write_bytes(contents)
            (out / f"{FILES[target]}.failed").unlink(missing_ok=True)
        if "onnx" in made:
            shutil.copyfile(pathlib.Path(self_check.__file__).with_name("run_exported.py"), out / RUN)
            for name in self_check.missing_runtimes():
                console.print(f"{name} is not installed and was not tried: pip install -r requirements-devices.txt")
        files = [out / FILES[target] for target in made if target != "packed"]
        checks = _check(subject, dataset, files, console)
        about = finished.about_data(experiment, dataset)
        write_json(
            out / DESCRIPTION,
            {
                "kind": "exported network",
                "model": subject.network.about.get("model"),
                "form": "exact",
                "batch": batch,
                "arithmetic": "codes are multiplied, and the result by the scale of the input and by those of weights",
                "input": {
                    "name": "input",
                    "shape": about["input_shape"],
                    "type": about["input_type"],
                    "layout": "batch first, channels last",
                    "normalization": about["normalization"],
                },
                "output": {"name": "output", "classes": about["classes"], "class_names": about["class_names"]},
                "layers": _described_layers(subject.network, containers),
                "files": {
                    FILES[target]: {**_described_file(out / FILES[target]), "checks": checks.get(FILES[target], [])}
                    for target in made
                },
                "versions": environment_summary()["versions"],
            },
        )
        failed = [name for name, told in checks.items() if self_check.is_failure(told)]
        for name in failed:
            (out / name).rename(out / f"{name}.failed")
    if failed:
        raise ValueError(
            f"{out}: {', '.join(failed)}: more than {self_check.MOST_DIFFERING:.1%} of the decisions differ from the "
            "network's, or a runtime cannot run it; kept as *.failed"
        )
    console.print(f"{out}: " + ", ".join(f"{FILES[target]} {len(made[target]):,} bytes" for target in made))


def read_targets(text: str) -> tuple[str, ...]:
    """The targets of `--to`.

    Raises:
      ConfigError: one is unknown, or there twice.
    """
    targets = tuple(text.split(","))
    if unknown := [target for target in targets if target not in FILES]:
        raise ConfigError(f"--to={text}: {', '.join(unknown) or 'nothing'}: expected some of {','.join(FILES)}")
    if len(set(targets)) < len(targets):
        raise ConfigError(f"--to={text}: expected each target once")
    return targets


def read_batch(text: str) -> int | str:
    """The number of `--batch`, or `ANY`.

    Raises:
      ConfigError: it is neither.
    """
    if text == ANY:
        return ANY
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"--batch={text}: expected a number of examples, or {ANY}")
    return int(text)


def main(argv: list[str] | None = None) -> None:
    """Exports the run of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=pathlib.Path, metavar="DIR")
    parser.add_argument("--to", default=",".join(FILES), help="what to write, joined by commas")
    parser.add_argument("--form", choices=["exact"], default="exact", help="exact: the network as it was measured")
    parser.add_argument("--batch", default=ANY, help="examples at once: a number, or any")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="directory for the files")
    parser.add_argument("--data_dir", help="data.data_dir, if the data have moved")
    parser.add_argument("--file", help="data.file, if the data have moved")
    arguments = parser.parse_args(argv)
    moved = {"data.data_dir": arguments.data_dir, "data.file": arguments.file}
    console = Console(width=200, markup=False, highlight=False, soft_wrap=True)
    with ending.in_one_line():
        export_run(
            arguments.directory,
            arguments.out,
            console,
            targets=read_targets(arguments.to),
            batch=read_batch(arguments.batch),
            **{key: value for key, value in moved.items() if value is not None},
        )


if __name__ == "__main__":
    main()
