"""Throughput of pricing in genomes per second: ResNet-18 with 22 decisions, populations of 2^20, float32.

    python -m benchmarks.pricing

Compares `pricing.price` under vmap, a direct implementation of the formula with one gather of all terms, and NumPy.
Medians of 15 interleaved turns; figures per core are from the CPU time. Writes results/pricing.json beside this file.
"""

import json
import pathlib
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from aqt_like.formats import format_space
from benchmarks import timing
from fliqs_jax import models
from hwcost import pricing, workload
from hwcost.costs import COSTS
from hwcost.format_plan import format_plan

RESULTS = pathlib.Path(__file__).parent / "results" / "pricing.json"
POPULATION = 1 << 20


def pricers(space: str) -> dict[str, Callable[[], None]]:
    """Functions by name, which price the same population."""
    layers = workload.trace(models.create("resnet18", classes=1000), (224, 224, 3), train=False)
    plan = format_plan(layers, format_space(space))
    table = COSTS["bit_operations"].table(plan)
    rng = np.random.default_rng(0)
    host = rng.integers(0, plan.space.option_counts, (POPULATION, len(plan.space))).astype(np.int32)
    genomes, flat, host_flat = jnp.asarray(host), jnp.asarray(table.flat, jnp.float32), table.flat.astype(np.float32)

    def gather_all_terms(genome: jax.Array) -> jax.Array:
        return jnp.sum(flat[table.offset + (table.stride * genome[table.decision]).sum(axis=1)])

    def jitted(price: Callable[[jax.Array], jax.Array]) -> Callable[[], None]:
        compiled = jax.jit(jax.vmap(price))
        return lambda: jax.block_until_ready(compiled(genomes))

    return {
        "ours": jitted(lambda genome: pricing.price(table, genome)),
        "one gather of all terms": jitted(gather_all_terms),
        "NumPy": lambda: host_flat[table.offset + host[:, table.decision[:, 0]]].sum(axis=1),
    }


def measure(space: str) -> dict[str, dict[str, float]]:
    """Millions of genomes per second, and per second of CPU time, by implementation."""
    functions = pricers(space)
    cpu_seconds: dict[str, list[float]] = {name: [] for name in functions}

    def counted(name: str) -> Callable[[], None]:
        def run() -> None:
            start = time.process_time()
            functions[name]()
            cpu_seconds[name].append(time.process_time() - start)

        return run

    seconds = timing.interleaved_medians({name: counted(name) for name in functions})
    return {
        name: {
            "million_per_second": POPULATION / seconds[name] / 1e6,
            "million_per_second_core": POPULATION / statistics.median(cpu_seconds[name][1:]) / 1e6,
            "time_over_ours": seconds[name] / seconds["ours"],
        }
        for name in functions
    }


def markdown(measured: dict[str, dict[str, dict[str, float]]]) -> str:
    """Table of docs/devices.md in Markdown."""
    lines = ["| formats | pricing | million genomes / s | per core | time / ours |", "|---|---|---|---|---|"]
    for space, rows in measured.items():
        for name, row in rows.items():
            lines.append(
                f"| {space} | {name} | {row['million_per_second']:.1f} | {row['million_per_second_core']:.1f} | "
                f"{row['time_over_ours']:.1f} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures, stores and prints."""
    measured = {space: measure(space) for space in ("int_s", "fp_l")}
    RESULTS.write_text(json.dumps({"command": "python -m benchmarks.pricing", "spaces": measured}, indent=1) + "\n")
    print(markdown(measured))


if __name__ == "__main__":
    main()
