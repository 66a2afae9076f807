"""Lookup tables of layer costs on a device.

    python -m launch.lut build --device=bitfusion --keys=KEYS.json --out=TABLE.json
    python -m launch.lut convert --apq=TABLE.json --metric=latency --out=LATENCY.csv
    python -m launch.lut convert --haq=TABLE.npy --model=mobilenetv2 --out=LATENCY.json
    python -m launch.lut measure --model=resnet18 --backend=onnxruntime --out=MINE.json

`build` computes latency (ms) and energy (mJ) for keys of APQ's form, `(in, out, size, kernel, stride, padding,
groups)-W8A8`, which are read from a JSON list or are the keys of a JSON object. `convert` reads a published table and
writes it in our own format (hwcost/measured_tables.py), JSON or CSV, for `--config.cost=LATENCY.csv`. `measure` times
the layers of a network on this machine, and also the whole network, to validate the sum over layers. An interrupted
measurement is resumed; measuring another network into the same file adds its layers.
"""

import argparse
import json
import os
import pathlib
import sys
import time
from collections import defaultdict
from collections.abc import Sequence

if not __package__:  # run as a file: import from the folder of launch/ and from the current one
    sys.path[:1] = [str(pathlib.Path(__file__).parents[1]), ""]

import jax
from rich.console import Console
from rich.progress import track
from rich.table import Table

from fliqs_jax import models
from fliqs_jax.models.call_finding import called
from hwcost import bitfusion, measured_tables
from launch import cost, ending, model_arguments
from launch.runtimes import engines, layer_timing
from launch.training.progress import plainly


def build_bitfusion(keys: Sequence[str]) -> dict[str, dict[str, float]]:
    """BitFusion's latency (ms) and energy (mJ) by key, as in APQ's lookup table (APQ, §3.3).

    Raises:
      ValueError: a key cannot be parsed or computed.
    """
    settings: dict[bitfusion.Geometry, list[tuple[str, measured_tables.Bits]]] = defaultdict(list)
    for key in keys:
        layer, bits = measured_tables.parse_apq_key(key)
        settings[bitfusion.layer_geometry(layer)].append((key, bits))
    table = {}
    for geometry, members in settings.items():
        weight_bits, activation_bits = zip(*(bits for _, bits in members), strict=True)
        costs = bitfusion.cost(geometry, weight_bits, activation_bits)
        latencies, energies = costs.milliseconds(bitfusion.APQ_ACCELERATOR).tolist(), costs.millijoules.tolist()
        for (key, _), latency, energy in zip(members, latencies, energies, strict=True):
            table[key] = {"latency": latency, "energy": energy}
    return {key: table[key] for key in keys}


def _build(arguments: argparse.Namespace) -> None:
    try:
        keys = list(json.loads(arguments.keys.read_text(encoding="utf-8-sig")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise measured_tables.LutError(f"cannot read keys from {arguments.keys}: {error}") from error
    start = time.perf_counter()
    table = build_bitfusion(keys)
    seconds = time.perf_counter() - start
    arguments.out.write_text(json.dumps(table, indent=1) + "\n")
    print(f"{len(table)} settings of {arguments.device} in {seconds:.2f} s: {arguments.out}")


def _convert(arguments: argparse.Namespace) -> None:
    if arguments.apq:
        table = measured_tables.read_apq(arguments.apq, arguments.metric)
    else:
        if not arguments.model:
            raise measured_tables.LutError(
                "--haq needs --model: its table names layers by their place in the network alone"
            )
        table = measured_tables.read_haq(arguments.haq, cost.network_workload(arguments.model))
    measured_tables.write(arguments.out, table)
    print(f"{len(table.entries)} settings of {table.device}, {table.metric} in {table.unit}: {arguments.out}")


def _measure(arguments: argparse.Namespace) -> None:
    example = model_arguments.example_of(arguments.model, [arguments.input] if arguments.input else [], arguments.dtype)
    if not isinstance(example, jax.ShapeDtypeStruct):
        raise measured_tables.LutError(f"--input={arguments.input}: expected the shape of one input, without a name")
    shape = (arguments.batch, *example.shape)
    runtime = engines.find(arguments.backend, threads=arguments.threads)
    model = models.create(arguments.model, classes=arguments.classes, **model_arguments.network_settings(arguments.set))
    terminal = Console(markup=False)
    console = terminal if terminal.is_terminal else Console(width=120, markup=False)
    console.print(f"{arguments.model} on {runtime.device}, batch {arguments.batch}")
    network = layer_timing.network(arguments.model, called(model), shape, dtype=example.dtype)
    identity = {"device": runtime.device, "batch": arguments.batch}
    samples = layer_timing.Samples(arguments.out.with_suffix(".samples.jsonl"), **identity, say=plainly(console))
    try:
        layer_timing.take(
            layer_timing.timing_settings(network, runtime),
            samples,
            repetitions=arguments.repetitions,
            progress=lambda items, label: track(list(items), label, console=console),
        )
    finally:
        samples.close()
    table = layer_timing.table(samples, **identity)
    measured_tables.write(arguments.out, table)
    console.print(_checks_table(layer_timing.check(network, samples, runtime.widths)))
    console.print(f"{len(table.entries)} settings, {table.metric} in {table.unit}: {arguments.out}", soft_wrap=True)


def _checks_table(checks: Sequence[layer_timing.Check]) -> Table:
    rows = Table("whole network", *("sum over layers", "measured", "sum / measured"), box=None)
    for column in rows.columns[1:]:
        column.justify = "right"
    for check in checks:
        ratio = f"{check.predicted / check.measured:.2f}"
        rows.add_row(f"{check.width} bits", f"{check.predicted:.3f} ms", f"{check.measured:.3f} ms", ratio)
    return rows


def main(argv: list[str] | None = None) -> None:
    """Builds, converts or measures a lookup table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="build|convert|measure")
    build = commands.add_parser("build", help="fill keys with what an accelerator's model says")
    build.add_argument("--device", choices=("bitfusion",), required=True)
    build.add_argument(
        "--keys", type=pathlib.Path, required=True, help="a JSON list of keys, or an object that has them"
    )
    build.add_argument("--out", type=pathlib.Path, required=True)
    build.set_defaults(run=_build)
    convert = commands.add_parser("convert", help="write a published table in our own form")
    source = convert.add_mutually_exclusive_group(required=True)
    source.add_argument("--apq", type=pathlib.Path, help="a JSON table as APQ's")
    source.add_argument("--haq", type=pathlib.Path, help="a NumPy table as HAQ's")
    convert.add_argument("--metric", choices=("latency", "energy"), default="latency", help="of APQ's table")
    convert.add_argument("--model", help="whose layers HAQ's table has")
    convert.add_argument("--out", type=pathlib.Path, required=True, help="a .json or .csv file")
    convert.set_defaults(run=_convert)
    measuring = commands.add_parser("measure", help="time a network's layers on this machine")
    measuring.add_argument("--model", required=True, help="one of our names, or package.module:function")
    measuring.add_argument("--input", help="shape of one example, as in 32,32,3, if not as published")
    measuring.add_argument("--set", action="append", default=[], help="NAME=VALUE, of the network, as in width=0.25")
    measuring.add_argument("--dtype", choices=("float32", "int32"), default="float32", help="of the input")
    measuring.add_argument("--classes", type=model_arguments.positive, help="of the classifier, if not as published")
    measuring.add_argument("--backend", choices=tuple(engines.RUNTIMES), default="onnxruntime")
    measuring.add_argument("--batch", type=model_arguments.positive, default=1)
    measuring.add_argument("--threads", type=model_arguments.positive, default=os.cpu_count())
    measuring.add_argument("--repetitions", type=model_arguments.positive, default=25, help="samples of each setting")
    measuring.add_argument("--out", type=pathlib.Path, required=True, help="a .json or .csv file")
    measuring.set_defaults(run=_measure)
    arguments = parser.parse_args(argv)
    with ending.in_one_line():
        arguments.run(arguments)


if __name__ == "__main__":
    main()
