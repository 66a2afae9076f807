"""Cost of a network before any training: bit operations, weights, memory.

    python -m launch.cost --model=mobilenetv2 --width=1.4 --format=int8 [--image=224] [--layers] [--json]
        [--cost=bitfusion_latency --cost=TABLE.csv]
    python -m launch.cost --model=my_package.my_module:make_model --input=ids=128:int32 --input=mask=128

`--format` is a number format, or a genome file with a format per layer. As in the tables of FLIQS, all convolutions and
dense layers are counted, but not squeeze-and-excitation and products of activations; `--everything` adds these. What is
not counted is told in a last line.
`--cost` adds a cost on a device (docs/devices.md).
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

if not __package__:  # run as a file: import from the folder of launch/ and from the current one
    sys.path[:1] = [str(pathlib.Path(__file__).parents[1]), ""]

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from aqt_like.formats import LayerFormat, parse_layer_format
from fliqs_jax import models
from fliqs_jax.models.call_finding import called, find_adapter
from hwcost import analytic, workload
from hwcost.costs import find_cost
from hwcost.genome_file import names_genome_file, read_genome
from hwcost.workload import Survey, Workload
from launch import ending
from launch.model_arguments import INPUT, example_of, network_settings, positive, several


def network_survey(
    name: str,
    *,
    classes: int | None = None,
    image: int | None = None,
    input_shape: Any = (),
    everything: bool = False,
    apply: str = "",
    **settings: Any,
) -> Survey:
    """Layers of a network and what is outside; `image` is the side of the images in pixels, `input_shape` the shape of
    one example, or a structure of `jax.ShapeDtypeStruct`s, `apply` a call of the user's.

    Raises:
      ValueError: unknown network, a setting that it does not have, an image size that it does not take, or no shape for
        a network of the user's.
    """
    example = input_shape
    if isinstance(input_shape, tuple) and all(isinstance(size, int) for size in input_shape):
        example = jax.ShapeDtypeStruct(models.input_shape(name, input_shape), np.float32)
    if image is not None:
        if not isinstance(example, jax.ShapeDtypeStruct) or len(example.shape) != 3 or image < 1:
            raise ValueError(f"image={image}: {name} takes no images of this size")
        example = jax.ShapeDtypeStruct((image, image, example.shape[-1]), example.dtype)
    model = models.create(name, classes=classes, **settings)
    ours = name in models.MODELS  # which is called in no unusual way
    call = called(model, None if ours else several(example), adapter=find_adapter(apply))
    ignored = () if everything else models.find(name).uncounted
    return workload.survey(call, example, ignored=ignored, products=everything)


def network_workload(name: str, **settings: Any) -> Workload:
    """Layers of a network; see `network_survey` for arguments and errors."""
    return network_survey(name, **settings).layers


def layer_formats(layers: Workload, name: str) -> list[LayerFormat]:
    """Format of each layer: `name`, or the formats in the genome file `name`.

    Says on standard error if the genome was found on layers of other sizes.

    Raises:
      ValueError: unknown format, unreadable file, or a file whose layers are not those of the network.
    """
    if not names_genome_file(name):
        return [parse_layer_format(name)] * len(layers)
    genome = read_genome(pathlib.Path(name))
    if not genome.layers:
        raise ValueError(f"{name} is of an earlier version, and does not say which layers its decisions are about")
    if unknown := sorted({layer.path for layer in layers} ^ set(genome.layers)):
        raise ValueError(f"{name} is a genome of another network: only one of the two has {', '.join(unknown)}")
    if resized := [layer for layer in layers if genome.layers[layer.path].macs not in (None, layer.macs)]:
        first = resized[0]
        print(
            f"note: {len(resized)} of {len(layers)} layers have other sizes than in the network of {name} "
            f"({first.path}: {genome.layers[first.path].macs:,} MACs there, {first.macs:,} here). "
            "--set, --width, --input and --classes describe a network.",
            file=sys.stderr,
        )
    return [parse_layer_format(genome.layers[layer.path].format) for layer in layers]


def device_costs(layers: Workload, chosen: list[LayerFormat], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Costs by name, each with its `unit`, its `total`, and its value per layer in `layers`.

    Raises:
      ValueError: unknown cost, or a layer or format that it cannot price.
    """
    costs = {}
    for name in names:
        model = find_cost(name)
        values = [float(model.layer_costs(layer, [fmt])[0]) for layer, fmt in zip(layers, chosen, strict=True)]
        costs[name] = {"unit": model.unit, "total": model.over_layers(values), "layers": values}
    return costs


def summarize(layers: Workload, chosen: list[LayerFormat]) -> dict[str, Any]:
    """Figures that do not depend on a device: totals, and one entry per layer in `layers`."""
    rows = [
        {
            "path": layer.path,
            "kind": layer.kind,
            "format": fmt.name,
            "gbops": analytic.bit_operations(layer, fmt) / 1e9,
            "gmacs": layer.macs / 1e9,
            "weights": layer.weights,
            "weight_bytes": analytic.weight_bytes(layer, fmt),
            "activation_bytes": analytic.activation_bytes(layer, fmt),
        }
        for layer, fmt in zip(layers, chosen, strict=True)
    ]
    totals = {key: sum(row[key] for row in rows) for key in ("gbops", "gmacs", "weights", "weight_bytes")}
    return {**totals, "peak_activation_bytes": max(row["activation_bytes"] for row in rows), "layers": rows}


def show(figures: dict[str, Any], console: Console, *, with_layers: bool) -> None:
    """Prints the figures as tables."""
    if with_layers:
        table = Table("layer", "kind", "format", box=None)
        table.columns[0].no_wrap = True
        for column in ("GBOPs", "share", "MMACs", "weights", "weight KB", "activation KB"):
            table.add_column(column, justify="right")
        for row in figures["layers"]:
            table.add_row(
                row["path"],
                row["kind"],
                row["format"],
                f"{row['gbops']:.3f}",
                f"{row['gbops'] / figures['gbops']:.1%}",
                f"{row['gmacs'] * 1e3:.2f}",
                f"{row['weights']:,}",
                f"{row['weight_bytes'] / 1e3:,.1f}",
                f"{row['activation_bytes'] / 1e3:,.1f}",
            )
        console.print(table)
    for label, text in (
        ("bit operations", f"{figures['gbops']:.4g} GBOPs"),
        ("multiply-accumulates", f"{figures['gmacs']:.4g} GMACs"),
        ("weights", f"{figures['weights']:,}, {figures['weight_bytes'] / 1e6:.4g} MB"),
        ("peak activations", f"{figures['peak_activation_bytes'] / 1e6:.4g} MB (input and output of one layer)"),
        ("layers", f"{len(figures['layers'])}"),
        *((name, f"{cost['total']:,.6g} {cost['unit']}") for name, cost in figures["costs"].items()),
    ):
        console.print(f"{label:<22}{text}")


def _number(text: str) -> float:
    return int(text) if text.isdigit() else float(text)


def main(argv: list[str] | None = None) -> None:
    """Prints the cost of the network that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help=f"package.module:function, or {', '.join(models.MODELS)}")
    parser.add_argument("--width", type=_number, help="factor on the channels, or channels, as the network takes it")
    parser.add_argument("--set", action="append", default=[], help="NAME=VALUE, of the network, as in depth=8")
    parser.add_argument("--format", default="int8", help="a number format, or a genome file")
    parser.add_argument("--input", action="append", default=[], help=f"{INPUT}; if not as published")
    parser.add_argument("--apply", default="", help="package.module:function, a call of yours (docs/own_models.md)")
    parser.add_argument("--image", type=positive, help="side of the images in pixels, if not as published")
    parser.add_argument("--classes", type=positive, help="of the classifier, if not as published")
    parser.add_argument("--everything", action="store_true", help="count what the paper does not count, too")
    parser.add_argument("--cost", action="append", default=[], help="of a device; may be given several times")
    parser.add_argument("--layers", action="store_true", help="one row per layer")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)
    with ending.in_one_line():
        found = network_survey(
            arguments.model,
            classes=arguments.classes,
            image=arguments.image,
            input_shape=example_of(arguments.model, arguments.input),
            everything=arguments.everything,
            apply=arguments.apply,
            **({} if arguments.width is None else {"width": arguments.width}),
            **network_settings(arguments.set),
        )
        layers = found.layers
        chosen = layer_formats(layers, arguments.format)
        costs = device_costs(layers, chosen, arguments.cost)
        figures = summarize(layers, chosen) | {"costs": costs, "outside": found.figures()}
    if arguments.json:
        print(json.dumps(figures, indent=1))
    else:
        terminal = Console(markup=False)
        console = terminal if terminal.is_terminal else Console(width=120, markup=False)
        show(figures, console, with_layers=arguments.layers)
        if remark := found.remark():
            console.print(remark, soft_wrap=True)


if __name__ == "__main__":
    main()
