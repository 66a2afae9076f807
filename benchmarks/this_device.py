"""Accuracy of a lookup table measured on this machine, and rank correlation of bit operations with latency.

    python -m benchmarks.this_device

For ResNet-18 and MobileNetV2 at batch size 1 in ONNX Runtime, compares the sum over single layers with the measured
network, at 8 and 32 bits, and for networks whose layers are randomly int8 or float. ResNet-18 is also measured in
OpenVINO and JAX. Needs requirements-devices.txt; takes three minutes. Writes results/this_device.json beside this file
and docs/measured.svg.
"""

import argparse
import json
import os
import pathlib
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from scipy.stats import spearmanr

from aqt_like.formats import parse_format
from benchmarks import pictures
from fliqs_jax import models
from hwcost import analytic
from launch.reports import charts
from launch.runtimes import engines, layer_timing
from launch.runtimes.engines import Run, Runtime
from launch.runtimes.layer_timing import Network, Samples, Setting

RESULTS = pathlib.Path(__file__).parent / "results" / "this_device.json"
NETWORKS = ("resnet18", "mobilenetv2")
MIXED = 24  # networks of random formats
REPETITIONS = 25


def random_widths(layers: int) -> np.ndarray:
    """Random bit widths 8 or 32, int[MIXED, layers]; the fraction of 8 bits increases from network to network."""
    rng = np.random.default_rng(0)
    share = np.linspace(0.05, 0.95, MIXED)
    return np.where(rng.random((MIXED, layers)) < share[:, None], 8, 32)


def measured_with(
    runtime: Runtime, network: Network, mixed: Mapping[Setting, Callable[[], Run]], console: Console
) -> Samples:
    """Measures a network, its layers, and networks of mixed formats."""
    with tempfile.TemporaryDirectory() as directory:
        samples = Samples(pathlib.Path(directory, "samples.jsonl"), device=runtime.device, batch=1)
        layer_timing.take(
            {**layer_timing.timing_settings(network, runtime), **mixed},
            samples,
            repetitions=REPETITIONS,
            progress=lambda items, label: track(list(items), label, console=console),
        )
        samples.close()
    return samples


def compare(network: Network, runtime: Runtime, console: Console) -> dict[str, Any]:
    """Measured and predicted latency in milliseconds of uniform and mixed networks, and rank correlations."""
    widths = random_widths(len(network.layers))
    paths = [layer.path for layer in network.layers]
    mixed = {
        Setting(f"{network.key} mixed {number}", (8, 8)): partial(
            runtime.prepare_network,
            network.whole,
            8,
            [path for path, width in zip(paths, row, strict=True) if width == 32],
        )
        for number, row in enumerate(widths)
    }
    samples = measured_with(runtime, network, mixed, console)
    measured = [samples.entry(setting).value for setting in mixed]
    model = layer_timing.table(samples, device=runtime.device, batch=1).cost_model()
    by_width = {8: parse_format("int8"), 32: parse_format("fp32")}
    rows = []
    for row, milliseconds in zip(widths, measured, strict=True):
        chosen = [(layer, by_width[width]) for layer, width in zip(network.layers, row.tolist(), strict=True)]
        rows.append(
            {
                "float_layers": int((row == 32).sum()),
                "predicted": sum(float(model.layer_costs(layer, [fmt])[0]) for layer, fmt in chosen),
                "measured": milliseconds,
                "gbops": sum(analytic.bit_operations(layer, fmt) for layer, fmt in chosen) / 1e9,
            }
        )
    columns = {key: [row[key] for row in rows] for key in ("predicted", "measured", "gbops")}
    return {
        "uniform": [check._asdict() for check in layer_timing.check(network, samples, runtime.widths)],
        "mixed": rows,
        "rank_correlation_with_measured": {
            name: float(spearmanr(columns[key], columns["measured"]).statistic)
            for name, key in (("table", "predicted"), ("bit operations", "gbops"))
        },
    }


def markdown(networks: dict[str, dict[str, Any]]) -> str:
    """Table of docs/devices.md in Markdown."""
    lines = [
        "| network | sum / whole, float | sum / whole, int8 | rank of mixed networks: table | bit operations |",
        "|---|---|---|---|---|",
    ]
    for name, comparison in networks.items():
        ratio = {check["width"]: check["predicted"] / check["measured"] for check in comparison["uniform"]}
        ranks = comparison["rank_correlation_with_measured"].values()
        lines.append(
            f"| {name} | {ratio[32]:.2f} | {ratio[8]:.2f} | " + " | ".join(f"{rank:.3f}" for rank in ranks) + " |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures, stores, draws and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    runtime, console = engines.find("onnxruntime", threads=arguments.threads), Console()
    networks = {
        name: layer_timing.network(
            name, models.create(name, classes=1000), (1, *models.find(name).input_shape), train=False
        )
        for name in NETWORKS
    }
    comparisons = {name: compare(network, runtime, console) for name, network in networks.items()}
    other_runtimes = {}
    for backend in ("openvino", "jax"):
        backend_runtime, network = engines.find(backend, threads=arguments.threads), networks[NETWORKS[0]]
        samples = measured_with(backend_runtime, network, {}, console)
        checks = layer_timing.check(network, samples, backend_runtime.widths)
        other_runtimes[backend_runtime.device] = [check._asdict() for check in checks]
    document = {
        "command": "python -m benchmarks.this_device",
        "device": runtime.device,
        "repetitions": REPETITIONS,
        "networks": comparisons,
        f"{NETWORKS[0]} with other runtimes": other_runtimes,
    }
    RESULTS.write_text(json.dumps(document, indent=1) + "\n")

    def column(name: str, key: str) -> np.ndarray:
        return np.asarray([row[key] for row in comparisons[name]["mixed"]])

    series = {name: (column(name, "measured"), column(name, "predicted")) for name in comparisons}
    picture = charts.scatter(series, xlabel="measured (ms)", ylabel="sum over layers (ms)", diagonal=True)
    pictures.write("measured.svg", picture)
    print(markdown(comparisons))


if __name__ == "__main__":
    main()
