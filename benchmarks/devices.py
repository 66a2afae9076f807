"""BitFusion model against APQ's published table, rank correlation of bit operations with device costs, and a roofline.

    python -m benchmarks.devices --apq_table=FILE

FILE is APQ's lookup table of latencies and energies on BitFusion, or a part of it. Rank correlations (Spearman) of bit
operations with other costs are over 20,000 random genomes of int4 … int8; each has random format frequencies, so they
cover the range of costs. Writes results/devices.json beside this file, docs/bitfusion_ranks.svg and
docs/bitfusion_roofline.svg.
"""

import argparse
import json
import pathlib
from typing import Any

import jax
import numpy as np
from scipy.stats import spearmanr

from aqt_like.formats import format_space, parse_format
from benchmarks import pictures
from fliqs_jax import models
from hwcost import bitfusion, pricing, workload
from hwcost.costs import COSTS
from hwcost.format_plan import FormatPlan, format_plan
from hwcost.workload import LayerSpec, Workload
from launch import lut
from launch.reports import charts

RESULTS = pathlib.Path(__file__).parent / "results" / "devices.json"
NETWORKS = ("resnet18", "mobilenetv2")
COMPARED = (
    "bitfusion_latency",
    "bitfusion_energy",
    "rtx2080ti_latency",
    "weight_bytes",
    "peak_activation_bytes",
)
GENOMES = 20_000


def published_workload(name: str) -> Workload:
    """Workload of a network with its published input shape and classes."""
    return workload.trace(models.create(name, classes=1000), models.find(name).input_shape, train=False)


def random_genomes(plan: FormatPlan) -> np.ndarray:
    """Random genomes, int32[GENOMES, D], with random format frequencies."""
    rng = np.random.default_rng(0)
    options = len(plan.formats)
    frequencies = np.cumsum(rng.dirichlet(np.ones(options), GENOMES), axis=1)
    draws = rng.random((GENOMES, len(plan.space)))
    return (draws[:, :, None] > frequencies[:, None, :-1]).sum(axis=2).astype(np.int32)


def prices(name: str) -> dict[str, np.ndarray]:
    """Costs, float64[GENOMES], of the same random genomes, by name of the cost."""
    plan = format_plan(published_workload(name), format_space("int4,int5,int6,int7,int8"))
    genomes = random_genomes(plan)
    costs = {}
    for cost in ("bit_operations", *COMPARED):
        table = COSTS[cost].table(plan)
        price = jax.jit(jax.vmap(lambda genome, table=table: pricing.price(table, genome)))
        costs[cost] = np.asarray(price(genomes), np.float64)
    return costs


def against_apq(path: pathlib.Path) -> dict[str, Any]:
    """Errors of our model against the published table, and its cost of MobileNetV2 at 8 bits (APQ, Table 2)."""
    published = json.loads(path.read_text())
    ours = lut.build_bitfusion(list(published))
    clock = bitfusion.APQ_ACCELERATOR.clock * 1e-3
    cycles_off = [round((ours[key]["latency"] - values["latency"]) * clock) for key, values in published.items()]
    energy_errors = [abs(ours[key]["energy"] / values["energy"] - 1) for key, values in published.items()]
    layers, int8 = published_workload("mobilenetv2"), parse_format("int8")
    return {
        "settings": len(published),
        "latencies_off": int(np.count_nonzero(cycles_off)),
        "mean_energy_error": float(np.mean(energy_errors)),
        "largest_energy_error": float(np.max(energy_errors)),
        "mobilenetv2_int8_ms": COSTS["bitfusion_latency"].uniform(layers, int8),
        "mobilenetv2_int8_mj": COSTS["bitfusion_energy"].uniform(layers, int8),
    }


def roofline_points(layers: Workload, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """MACs per byte of minimum traffic, and MACs per second on BitFusion, of each layer: float64[L] each."""
    fmt = parse_format(f"int{bits}")
    model = bitfusion.cost_models()["latency"]

    def point(layer: LayerSpec) -> tuple[float, float]:
        moved = (layer.weights + layer.input_values + layer.output_values) * bits / 8
        return layer.macs / moved, layer.macs / (1e-3 * model.layer_costs(layer, [fmt])[0])

    intensity, speed = np.asarray([point(layer) for layer in layers]).T
    return intensity, speed


def main() -> None:
    """Compares, stores, draws and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--apq_table", type=pathlib.Path, required=True)
    arguments = parser.parse_args()
    priced = {name: prices(name) for name in NETWORKS}
    ranks: dict[str, dict[str, Any]] = {
        name: {cost: float(spearmanr(costs["bit_operations"], costs[cost]).statistic) for cost in COMPARED}
        for name, costs in priced.items()
    }
    document = {
        "command": "python -m benchmarks.devices --apq_table=FILE",
        "bitfusion": against_apq(arguments.apq_table),
        "genomes": GENOMES,
        "rank_correlation": ranks,
    }
    RESULTS.write_text(json.dumps(document, indent=1) + "\n")
    series = {
        f"{name} (rank correlation {ranks[name]['bitfusion_latency']:.2f})": (
            costs["bit_operations"][:3000] / 1e9,
            costs["bitfusion_latency"][:3000],
        )
        for name, costs in priced.items()
    }
    pictures.write("bitfusion_ranks.svg", charts.scatter(series, xlabel="GBOPs", ylabel="latency on BitFusion (ms)"))
    array = bitfusion.APQ_ACCELERATOR
    peak = array.rows * array.columns * array.clock
    layers = published_workload("mobilenetv2")
    pictures.write(
        "bitfusion_roofline.svg",
        charts.roofline(
            {f"MobileNetV2 at int{bits}": roofline_points(layers, bits) for bits in (4, 8)},
            peaks={"MobileNetV2 at int4": 4 * peak, "MobileNetV2 at int8": peak},
            bytes_per_second=array.bus_bits / 8 * array.clock,
        ),
    )
    print(json.dumps(document["bitfusion"], indent=1))
    print(markdown(ranks))


def markdown(ranks: dict[str, dict[str, float]]) -> str:
    """Table of docs/devices.md in Markdown."""
    lines = ["| rank correlation with bit operations | " + " | ".join(ranks) + " |", "|---" * (len(ranks) + 1) + "|"]
    lines += [f"| `{cost}` | " + " | ".join(f"{ranks[name][cost]:.3f}" for name in ranks) + " |" for cost in COMPARED]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
