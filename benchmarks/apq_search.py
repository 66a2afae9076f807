"""Speed and quality of evolution in APQ's space under BitFusion's latency (APQ, §3.3).

    python -m benchmarks.apq_search           (about ten minutes on two cores)
    python -m benchmarks.apq_search --quick   (a smoke test; stores nothing)

It is compared with the algorithm of the authors' release (apq_original.py). The predictor has APQ's size, 772 → 400 →
400 → 400 → 1 (§3.2), and random weights: it is as fast as a trained one, and harder to search. The results go to
results/apq_search.json beside this file.
"""

import argparse
import dataclasses
import json
import os
import pathlib
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from apq_jax import architectures, evolution, predictor
from apq_jax.architecture_space import ArchitectureSpace, Stage
from apq_jax.evolution import PAPER, Settings
from apq_jax.predictor import Predictor
from benchmarks import apq_original, timing
from hwcost.costs import COSTS
from hwcost.pricing import CostTable
from launch.apq.fit_predictor import predict_accuracies

RESULTS = pathlib.Path(__file__).parent / "results" / "apq_search.json"
COST = COSTS["bitfusion_latency"]
LIMIT, TIGHT = 12.8, 6.11
CALLS = 20  # successive calls of the predictor, as in evolution
MANY = tuple(np.linspace(TIGHT, 20.0, 16).round(2).tolist())

Document = dict[str, Any]


class Effort(NamedTuple):
    """The extent of the measurements."""

    settings: Settings = PAPER
    repetitions: int = timing.REPETITIONS
    seeds: int = 5
    small_seeds: int = 10


QUICK = Effort(Settings(generations=4), 1, 1, 2)


def random_predictor(space: ArchitectureSpace, seed: int) -> Predictor:
    """An untrained predictor of the size in APQ (§3.2)."""
    features = space.features(jnp.asarray(space.smallest)).shape[0]
    return predictor.init(features, np.asarray([-1.0, 1.0]), jax.random.key(seed))


def speed(space: ArchitectureSpace, table: CostTable, effort: Effort) -> Document:
    """Seconds of our search, of its first call, and of the release's algorithm; and predictions per second."""
    untrained, settings = random_predictor(space, 0), effort.settings
    fitness, tables = Partial(partial(predict_accuracies, space), untrained), {"latency": table}
    evolve = evolution.make(space, tables, settings).evolve
    key = jax.random.key(0)
    genomes = jax.vmap(space.sample)(jax.random.split(key, 1000))
    predicting = jax.jit(partial(predict_accuracies, space))
    released = apq_original.AsReleased(space, COST, untrained, settings)
    host_fitness, host_price = apq_original.fitness_of_genomes(space, untrained), apq_original.prices(table)
    in_arrays = apq_original.in_arrays(space, host_fitness, host_price, LIMIT, settings, 0)

    def ours(*limits: float) -> Callable[[], Any]:
        return lambda: evolve(fitness, [[limit] for limit in limits], key)

    seconds = timing.interleaved_medians(
        {
            "ours": ours(LIMIT),
            "ours, tight": ours(TIGHT),
            "ours, many": ours(*MANY),
            "ours, first call": lambda: evolution.make(space, tables, settings).evolve(fitness, [[LIMIT]], key),
            "as released": lambda: released.run(LIMIT, 0),
            "in arrays": in_arrays,
            "predictor": lambda: jax.block_until_ready([predicting(untrained, genomes) for _ in range(CALLS)]),
        },
        effort.repetitions,
    )
    return {
        "generations": settings.generations,
        "predicted_per_second": CALLS * len(genomes) / seconds.pop("predictor"),
        "seconds": seconds,
        "time_over_ours": {
            "as released": seconds["as released"] / seconds["ours"],
            "in arrays": seconds["in arrays"] / seconds["ours"],
        },
    }


def quality(space: ArchitectureSpace, table: CostTable, effort: Effort) -> Document:
    """Best fitness under `LIMIT` at equal numbers of evaluations, for a random predictor per seed."""
    settings, price = effort.settings, apq_original.prices(table)
    evolve = evolution.make(space, {"latency": table}, settings).evolve
    function = partial(predict_accuracies, space)
    evaluations = settings.population * (1 + settings.generations)
    best: dict[str, list[float]] = {"ours": [], "original's algorithm": [], "random": []}
    for seed in range(effort.seeds):
        untrained = random_predictor(space, seed)
        fitness = apq_original.fitness_of_genomes(space, untrained)
        best["ours"].append(float(evolve(Partial(function, untrained), [[LIMIT]], jax.random.key(seed)).fitness[0, 0]))
        best["original's algorithm"].append(apq_original.in_arrays(space, fitness, price, LIMIT, settings, seed)())
        drawn = apq_original.drawn_until_feasible(apq_original.sampler(space, seed), price, LIMIT, evaluations)
        best["random"].append(float(max(fitness(part).max() for part in np.array_split(drawn, 50))))
    return {"limit": LIMIT, "evaluations": evaluations, "best": best}


def small_space() -> ArchitectureSpace:
    """A space of two or three blocks with 221,184 genomes."""
    stages = (Stage(8, 1, 1, 2), Stage(16, 2, 1, 1))
    return dataclasses.replace(
        architectures.find("digits"), stages=stages, bits=(4, 8), expansion=(2, 3), kernels=(3, 5), excluded=(5, 4)
    )


def optimum(effort: Effort) -> Document:
    """How often evolution finds the optimum of a small space, under a limit that a fifth of its genomes meet."""
    space = small_space()
    counts = tuple(space.search_space.option_counts)
    genomes = np.indices(counts).reshape(len(counts), -1).T.astype(np.int32)
    genomes = genomes[np.asarray(space.is_valid(jnp.asarray(genomes)))]
    table = space.cost_table(COST)
    costs = apq_original.prices(table)(genomes)
    limit = float(np.quantile(costs, 0.2))
    feasible = genomes[costs <= limit]
    function = partial(predict_accuracies, space)
    predicting, evolve = jax.jit(function), evolution.make(space, {"latency": table}, effort.settings).evolve
    hits = 0
    for seed in range(effort.small_seeds):
        untrained = random_predictor(space, seed)
        best = max(float(predicting(untrained, jnp.asarray(part)).max()) for part in np.array_split(feasible, 16))
        reached = float(evolve(Partial(function, untrained), [[limit]], jax.random.key(seed)).fitness[0, 0])
        hits += reached >= best - 1e-3 * abs(best)
    return {
        "genomes": len(genomes),
        "feasible": len(feasible),
        "within": 1e-3,
        "seeds": effort.small_seeds,
        "found": hits,
    }


def measure(effort: Effort) -> Document:
    """The document of all results."""
    space = architectures.find("paper")
    table = space.cost_table(COST)
    return {
        "command": "python -m benchmarks.apq_search",
        "device": f"{os.cpu_count()} CPU cores",
        "repetitions": effort.repetitions,
        "limits": {"loose": LIMIT, "tight": TIGHT, "many": MANY},
        "speed": speed(space, table, effort),
        "quality": quality(space, table, effort),
        "optimum": optimum(effort),
    }


def markdown(document: Document) -> str:
    """The Markdown tables of docs/apq.md."""
    fast, limits, optimum = document["speed"], document["limits"], document["optimum"]
    seconds, ratios, quality = fast["seconds"], fast["time_over_ours"], document["quality"]
    rows = [
        (f"ours, {limits['loose']} ms", f"{seconds['ours']:.2f}"),
        (f"ours, {limits['tight']} ms", f"{seconds['ours, tight']:.2f}"),
        (f"ours, {len(limits['many'])} limits in one call", f"{seconds['ours, many']:.2f}"),
        (f"ours, {limits['loose']} ms, first call with compilation", f"{seconds['ours, first call']:.2f}"),
    ]
    rows += [
        (f"the original's algorithm {name}, {limits['loose']} ms", f"{seconds[key]:.2f}, {ratios[key]:.1f} × ours")
        for key, name in (("as released", "as its release works"), ("in arrays", "in NumPy arrays"))
    ]
    lines = [f"| {fast['generations']} generations of {PAPER.population} | seconds |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in rows]
    seeds = len(quality["best"]["ours"])
    lines += ["", f"| {quality['evaluations']:,} evaluations, {quality['limit']} ms | best fitness, each seed | mean |"]
    lines.append("|---|---|---|")
    for name, values in quality["best"].items():
        lines.append(f"| {name} | {', '.join(f'{value:.2f}' for value in values)} | {sum(values) / seeds:.2f} |")
    lines += [
        "",
        f"Of {optimum['genomes']:,} genomes the best within the limit is found, or one within "
        f"{optimum['within']:.1%} of it, with {optimum['found']} of {optimum['seeds']} seeds.",
        f"The predictor rates {fast['predicted_per_second']:,.0f} genomes a second.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures and prints the tables, and stores the results unless `--quick` is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smoke test, whose figures mean nothing")
    quick = parser.parse_args().quick
    document = measure(QUICK if quick else Effort())
    print(markdown(document))
    if not quick:
        RESULTS.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
