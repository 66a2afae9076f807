"""Exports the network of a finished run to files that runtimes execute with the same answers, and checks them.

    python -m launch.export DIR [--to=onnx,stablehlo,packed,qonnx] [--form=exact|fast] [--batch=any]
        [--input=float|uint8] --out=OUT

* packed: network.safetensors as it is.
* onnx: model.onnx, in which codes are multiplied and scaled afterwards, as in the run; for ONNX Runtime and OpenVINO.
* stablehlo: model.stablehlo, for `jax.export.deserialize` on cpu, cuda and tpu, with packed codes inside.
* qonnx: model.qonnx, in which Quant nodes tell formats and scales to FINN and hls4ml; only if it is asked for.

--form=fast writes model.onnx alone, of another network: 8 bits for all integer layers, with ranges from training data.

OUT gets export.json as well, which describes the network, its inputs and the files, and with onnx run.py, which needs
no JAX. Each file is run on up to 10,000 test examples in each runtime that is installed, in batches and, with
--batch=any, 100 of them alone. If more than 0.1 % of the decisions differ from the network's, or if the fast form loses
more than --tolerance points of quality, the file is renamed to *.failed and the command fails.
"""

import argparse
import math
import pathlib
import shutil
import sys
from collections.abc import Sequence
from typing import Any

if not __package__:  # run as a file: import from the folder of launch/ and from the current one
    sys.path[:1] = [str(pathlib.Path(__file__).parents[1]), ""]

import jax
import numpy as np
from rich.console import Console

from aqt_like.frozen_network import FrozenNetwork, Kernel
from launch import ending
from launch.data.contract import named_arrays
from launch.one_writer import only_writer
from launch.runtimes import exported_network, file_speed, network_check, self_check
from launch.runtimes.exported_network import ANY, FILES, FORMS, USUAL, Subject, formats_of
from launch.training import finished, trial_run
from launch.training.provenance import file_digest
from launch.training.run_directory import write_json
from launch.training.run_summary import environment_summary
from launch.training.settings import ConfigError

DESCRIPTION, RUN = "export.json", "run.py"
TOLERANCE = 0.2  # points of quality


def _described_layers(network: FrozenNetwork, containers: dict[str, dict[str, list[str]]]) -> dict[str, Any]:
    """Formats and scales of all layers, and what they are in graphs, by target."""
    layers = {}
    for path, layer in network.layers.items():
        weight_format, input_format = formats_of(layer)
        weights: dict[str, Any] = {"format": weight_format}
        if isinstance(layer.weights, Kernel):
            weights["scales"] = np.asarray(layer.weights.packed.scale, np.float64).ravel().tolist()
        else:
            weights["clip_multiple"] = layer.weights.clip_multiple
        layers[path] = {"input": {"format": input_format, "scale": layer.input_scale}, "weights": weights}
        for target, operands in containers.items():
            for operand, container in zip(("input", "weights"), operands.get(path, ()), strict=False):
                layers[path][operand][f"in_{target}"] = container
    return layers


def _failure(checks: Sequence[dict[str, Any]], form: str, quality: str, tolerance: float) -> str:
    """What is wrong with a file, or nothing."""
    if self_check.is_broken(checks):
        return "a runtime cannot run it, or what it gives is not finite"
    if form == "exact":
        told = f"more than {self_check.MOST_DIFFERING:.1%} of the decisions differ from the network's"
        return told if self_check.has_too_many_differing(checks) else ""
    lost = max((100 * network_check.lost_quality(each, quality) for each in checks if quality in each), default=0.0)
    if lost > tolerance:
        return f"{quality} is {lost:.2f} points lower than the network's: expected at most --tolerance={tolerance}"
    return ""


def _described_file(path: pathlib.Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": file_digest(path)}


def export_run(
    directory: pathlib.Path,
    out: pathlib.Path,
    console: Console,
    *,
    form: str,
    targets: Sequence[str],
    batch: int | str,
    pixels: bool,
    tolerance: float,
    **changes: Any,
) -> None:
    """Exports the network of a finished run and checks the files.

    Args:
      directory: run directory.
      out: where files are written; it is created.
      console: where the checks are told.
      form: of `FORMS`.
      targets: of the form.
      batch: number of examples that the files take at once, or `ANY`.
      pixels: whether the files take images of uint8.
      tolerance: how much lower the quality of the fast form may be, in points.
      **changes: keys of the run's config to change.

    Raises:
      ConfigError, RuntimeMissingError, ExportError, DamagedFileError: nothing was written.
      ValueError: more decisions differ than an exact network may have, or the fast one loses more than `tolerance`; the
        files are there as `*.failed`.
    """
    if out.is_file() or out.resolve() == directory.resolve():
        raise ConfigError(f"--out={out}: expected a directory for the files, not a file and not that of the run")
    experiment = finished.read_experiment(directory, **changes)
    if not isinstance(experiment.source.example, jax.ShapeDtypeStruct):
        names = ", ".join(name for name, _ in named_arrays(experiment.source.example))
        raise ConfigError(f"{directory}: {names}: expected one input, since networks of several are not exported")
    network = finished.read_network(directory, experiment)
    subject = Subject(directory, experiment, network, batch, exported_network.read_pixels(network) if pixels else None)
    made, dataset = exported_network.make(subject, FORMS[form], targets, lambda: trial_run.open_data(experiment))
    known = network_check.expected_outputs(subject, dataset)
    with only_writer(out, console.print):
        for target, contents in made.contents.items():
            (out / FILES[target]).write_bytes(contents)
            (out / f"{FILES[target]}.failed").unlink(missing_ok=True)
        if "onnx" in targets:
            shutil.copyfile(pathlib.Path(self_check.__file__).with_name("run_exported.py"), out / RUN)
        files = [out / FILES[target] for target in targets if target != "packed"]
        for name in (name for file in files for name in self_check.missing_runtimes(file)):
            console.print(f"{name} is not installed and was not tried: see docs/export.md")
        checks = network_check.check(subject, known, files, console, listed=form == "exact")
        described = {FILES[target]: _described_file(out / FILES[target]) for target in targets}
        graph = FILES["onnx"]
        if graph in checks and not self_check.is_broken(checks[graph]):
            plain, example = exported_network.in_float32(subject), network_check.one_input(known)
            described[graph]["bytes_in_float32"] = len(plain)
            described[graph]["speed"] = speed = file_speed.compare_speed(out / graph, plain, example)
            for each in speed:
                console.print(
                    f"{graph} in {each['runtime']}, batch {each['batch']}: {each['milliseconds']:.3g} ms, in float32 "
                    f"{each['milliseconds_in_float32']:.3g}"
                )
        about = finished.about_data(experiment, dataset)
        write_json(
            out / DESCRIPTION,
            {
                "kind": "exported network",
                "model": subject.network.about.get("model"),
                "form": form,
                "batch": batch,
                "arithmetic": FORMS[form].arithmetic,
                "input": {
                    "name": "input",
                    "shape": about["input_shape"],
                    "type": np.dtype(subject.example.dtype).name,
                    "layout": "batch first, channels last",
                    "normalization": "in the file" if pixels else about["normalization"],
                },
                "output": {"name": "output", "classes": about["classes"], "class_names": about["class_names"]},
                "layers": _described_layers(subject.network, made.containers),
                "files": {name: {**file, "checks": checks.get(name, [])} for name, file in described.items()},
                "versions": environment_summary()["versions"],
            },
        )
        failures = {
            name: _failure(told, form, experiment.search.quality.name, tolerance) for name, told in checks.items()
        }
        failed = {name: told for name, told in failures.items() if told}
        for name in failed:
            (out / name).rename(out / f"{name}.failed")
    if failed:
        told = "; ".join(f"{name}: {what}" for name, what in failed.items())
        raise ValueError(f"{out}: {told}; kept as *.failed")
    console.print(f"{out}: " + ", ".join(f"{FILES[target]} {len(made.contents[target]):,} bytes" for target in targets))


def read_targets(text: str | None, form: str) -> tuple[str, ...]:
    """The targets of `--to`, or the usual ones of the form.

    Raises:
      ConfigError: one is unknown, or there twice.
    """
    known = FORMS[form].targets
    targets = tuple(target for target in USUAL if target in known) if text is None else tuple(text.split(","))
    if unknown := [target for target in targets if target not in known]:
        raise ConfigError(
            f"--to={text}: {', '.join(unknown) or 'nothing'}: expected some of {','.join(known)} with --form={form}"
        )
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


def read_tolerance(text: str | None, form: str) -> float:
    """The points of `--tolerance`.

    Raises:
      ConfigError: it is no number from 0 to 100, or the form is exact.
    """
    if text is None:
        return TOLERANCE
    if form == "exact":
        raise ConfigError(f"--tolerance={text}: expected with --form=fast only; an exact file loses nothing")
    try:
        points = float(text)
    except ValueError:
        points = math.nan
    if not 0 <= points <= 100:
        raise ConfigError(f"--tolerance={text}: expected points of quality, 0 to 100")
    return points


def main(argv: list[str] | None = None) -> None:
    """Exports the run of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=pathlib.Path, metavar="DIR")
    parser.add_argument("--to", help="what to write, joined by commas")
    parser.add_argument("--form", choices=list(FORMS), default="exact", help="exact: the network as it was measured")
    parser.add_argument("--batch", default=ANY, help="examples at once: a number, or any")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="directory for the files")
    parser.add_argument(
        "--input", choices=["float", "uint8"], default="float", help="uint8: images as they are, normalised in the file"
    )
    parser.add_argument("--tolerance", help=f"points of quality that the fast form may lose, {TOLERANCE} if not given")
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
            form=arguments.form,
            targets=read_targets(arguments.to, arguments.form),
            batch=read_batch(arguments.batch),
            pixels=arguments.input == "uint8",
            tolerance=read_tolerance(arguments.tolerance, arguments.form),
            **{key: value for key, value in moved.items() if value is not None},
        )


if __name__ == "__main__":
    main()
