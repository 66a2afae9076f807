"""How fast evolution searches APQ's space under BitFusion's latency, and how good what it finds is.

    python -m benchmarks.apq_search           (about four minutes on two cores)
    python -m benchmarks.apq_search --quick   (a smoke test; stores nothing)

Against the original release's algorithm, written down again in NumPy: it draws genomes until they are within budget.
The predictor has the true size, 772 → 400 → 400 → 1, and random weights: an untrained one is as fast, and harder to
search. Unlike the original's, the one here sees the bits. Writes results/apq_search.json beside this file.
"""

import argparse
import dataclasses
import functools
import itertools
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from apq_jax import evolution
from apq_jax import space as space_lib
from apq_jax.evolution import PAPER, Settings
from apq_jax.space import ArchitectureSpace
from benchmarks import timing
from hwcost.costs import COSTS
from hwcost.table import CostTable

RESULTS = pathlib.Path(__file__).parent / "results" / "apq_search.json"
HIDDEN = 400
LIMIT, TIGHT = 12.8, 6.11
TIGHT_WITH_ALL_LAYERS = (
    7.28  # what 6.11 ms are where the first block and the classifier count, which the original omits
)
MANY = tuple(np.linspace(TIGHT, 20.0, 16).round(2).tolist())

Document = dict[str, Any]
Weights = tuple[jax.Array, ...]
Price = Callable[[np.ndarray], np.ndarray]


class Effort(NamedTuple):
    """How much is measured."""

    settings: Settings = PAPER
    repetitions: int = timing.REPETITIONS
    slow_repetitions: int = 5
    seeds: int = 5
    small_seeds: int = 10


QUICK = Effort(Settings(generations=4), 1, 1, 1, 2)


def weights(space: ArchitectureSpace, seed: int) -> Weights:
    """Of a predictor, each layer keeping the variance."""
    sizes = (space.features(jnp.asarray(space.smallest)).shape[0], HIDDEN, HIDDEN, 1)
    keys = jax.random.split(jax.random.key(seed), len(sizes) - 1)
    pairs = zip(keys, itertools.pairwise(sizes), strict=True)
    return tuple(jax.random.normal(key, shape) * np.sqrt(2 / shape[0]) for key, shape in pairs)


def predict(space: ArchitectureSpace, layers: Weights, genomes: jax.Array) -> jax.Array:
    """int32[P, D] → float32[P]."""
    x = space.features(genomes)
    for layer in layers[:-1]:
        x = jax.nn.relu(x @ layer)
    return (x @ layers[-1])[:, 0]


def host_predictor(space: ArchitectureSpace, layers: Weights) -> Callable[[np.ndarray], np.ndarray]:
    """The same in NumPy."""
    decision, option, block = space._features
    first, *rest = (np.asarray(layer) for layer in layers)
    stages = np.asarray([b.stage for b in space.blocks])
    columns = {
        number: space.search_space.index(f"stage{number + 1}.depth")
        for number, stage in enumerate(space.stages)
        if stage.deepest > stage.shallowest
    }
    shallowest = np.asarray([space.stages[stage].shallowest for stage in stages])
    place = np.asarray([b.place for b in space.blocks])

    def run(genomes: np.ndarray) -> np.ndarray:
        zero = np.zeros(len(genomes), np.int32)
        depth = np.stack([genomes[:, columns[s]] if s in columns else zero for s in stages], axis=1) + shallowest
        active = place < depth
        x = ((genomes[:, decision] == option) & active[:, block]).astype(np.float32) @ first
        for layer in rest:
            x = np.maximum(x, 0) @ layer
        return x[:, 0]

    return run


def child_by_child(table: CostTable) -> Price:
    """Prices by looking every layer of every child up, in Python, as the original does."""
    flat = table.flat.tolist()
    rows = [
        (int(offset), [(int(d), int(s)) for d, s in zip(decision, stride, strict=True) if s])
        for offset, decision, stride in zip(table.offset, table.decision, table.stride, strict=True)
    ]

    def price(genomes: np.ndarray) -> np.ndarray:
        return np.asarray(
            [sum(flat[o + sum(s * g[d] for d, s in pairs)] for o, pairs in rows) for g in genomes.tolist()]
        )

    return price


def at_once(table: CostTable) -> Price:
    """Prices all children together in NumPy."""

    def price(genomes: np.ndarray) -> np.ndarray:
        total = np.zeros(len(genomes))
        for offset, decision, stride in zip(table.offset, table.decision, table.stride, strict=True):
            used = np.flatnonzero(stride)
            total += table.flat[offset + genomes[:, decision[used]] @ stride[used]]
        return total

    return price


def sampler(space: ArchitectureSpace, seed: int) -> Callable[[int], np.ndarray]:
    """Random valid genomes, drawn in large chunks so that drawing costs next to nothing."""
    chunk = 4096
    draw = jax.jit(lambda key: jax.vmap(space.sample)(jax.random.split(key, chunk)))
    drawn, place = np.empty((0, len(space.search_space)), np.int32), 0
    keys = itertools.count()

    def sample(count: int) -> np.ndarray:
        nonlocal drawn, place
        while len(drawn) - place < count:
            more = np.asarray(draw(jax.random.fold_in(jax.random.key(seed), next(keys))))
            drawn, place = np.concatenate([drawn[place:], more]), 0
        place += count
        return drawn[place - count : place]

    return sample


def drawn_until_feasible(draw: Callable[[int], np.ndarray], price: Price, limit: float, count: int) -> np.ndarray:
    """As many genomes within the limit: the places of those that are not are drawn again."""
    found = np.empty((0, draw(1).shape[1]), np.int32)
    while len(found) < count:
        genomes = draw(count - len(found))
        found = np.concatenate([found, genomes[price(genomes) <= limit]])
    return found


def original(
    space: ArchitectureSpace,
    fitness: Callable[[np.ndarray], np.ndarray],
    price: Price,
    limit: float,
    settings: Settings,
    seed: int,
) -> Callable[[], float]:
    """The original's algorithm, all of it; what it returns runs it and gives the best fitness."""
    rng, sample = np.random.default_rng(seed), sampler(space, seed)
    group = space.group

    def mutants(count: int) -> np.ndarray:
        parent = parents[rng.integers(len(parents), size=count)]
        change = rng.random((count, int(group.max()) + 1)) < settings.mutation
        return np.where(change[:, group], sample(count), parent)

    def crossed(count: int) -> np.ndarray:
        one, other = parents[rng.integers(len(parents), size=(2, count))]
        return np.where((rng.random((count, int(group.max()) + 1)) < 0.5)[:, group], one, other)

    parents = np.empty((0, len(group)), np.int32)

    def run() -> float:
        nonlocal parents
        population = drawn_until_feasible(sample, price, limit, settings.population)
        values = fitness(population)
        for _ in range(settings.generations):
            best = np.argsort(-values)[: settings.parents]
            parents, kept = population[best], values[best]
            half = settings.population // 2
            children = np.concatenate(
                [
                    drawn_until_feasible(mutants, price, limit, half),
                    drawn_until_feasible(crossed, price, limit, settings.population - half),
                ]
            )
            population, values = np.concatenate([parents, children]), np.concatenate([kept, fitness(children)])
        return float(values.max())

    return run


def speed(space: ArchitectureSpace, table: CostTable, effort: Effort) -> Document:
    """Seconds of a search: ours, our first call, and the original's algorithm; and the predictor's rate."""
    layers, function = weights(space, 0), functools.partial(predict, space)
    fitness, tables = Partial(function, layers), {"latency": table}
    evolve = evolution.make(space, tables, effort.settings).evolve
    key = jax.random.key(0)
    genomes = jax.vmap(space.sample)(jax.random.split(key, 1000))
    predicting = jax.jit(function)
    seconds = timing.interleaved_medians(
        {
            "loose": lambda: (evolve(fitness, [[LIMIT]], key), None)[1],
            "tight": lambda: (evolve(fitness, [[TIGHT]], key), None)[1],
            "tight with all layers": lambda: (evolve(fitness, [[TIGHT_WITH_ALL_LAYERS]], key), None)[1],
            "many": lambda: (evolve(fitness, [[limit] for limit in MANY], key), None)[1],
            "predictor": lambda: (jax.block_until_ready(predicting(layers, genomes)), None)[1],
        },
        effort.repetitions,
    )
    yardstick = original(space, host_predictor(space, layers), child_by_child(table), LIMIT, effort.settings, 0)
    tight = original(
        space, host_predictor(space, layers), child_by_child(table), TIGHT_WITH_ALL_LAYERS, effort.settings, 0
    )
    vectorised = original(space, host_predictor(space, layers), at_once(table), LIMIT, effort.settings, 0)
    slow = timing.interleaved_medians(
        {
            "first call": lambda: (
                evolution.make(space, tables, effort.settings).evolve(fitness, [[LIMIT]], key),
                None,
            )[1],
            "yardstick": lambda: (yardstick(), None)[1],
            "tight yardstick": lambda: (tight(), None)[1],
            "vectorised": lambda: (vectorised(), None)[1],
        },
        effort.slow_repetitions,
    )
    return {
        "generations": effort.settings.generations,
        "seconds": {
            **{name: seconds[name] for name in ("loose", "tight", "tight with all layers", "many")},
            "first call": slow["first call"],
        },
        "yardstick": {
            "seconds": slow["yardstick"],
            "time_over_ours": slow["yardstick"] / seconds["loose"],
            "tight_seconds": slow["tight yardstick"],
            "tight_time_over_ours": slow["tight yardstick"] / seconds["tight with all layers"],
            "vectorised_seconds": slow["vectorised"],
            "vectorised_time_over_ours": slow["vectorised"] / seconds["loose"],
        },
        "predicted_per_second": len(genomes) / seconds["predictor"],
    }


def quality(space: ArchitectureSpace, table: CostTable, effort: Effort) -> Document:
    """Best fitness under `LIMIT` after as many evaluations, one predictor and one start for each seed."""
    settings, function = effort.settings, functools.partial(predict, space)
    evolve, price = evolution.make(space, {"latency": table}, settings).evolve, at_once(table)
    evaluations = settings.population * (1 + settings.generations)
    best: dict[str, list[float]] = {"ours": [], "original's algorithm": [], "random": []}
    for seed in range(effort.seeds):
        layers = weights(space, seed)
        predicting = host_predictor(space, layers)
        best["ours"].append(float(evolve(Partial(function, layers), [[LIMIT]], jax.random.key(seed)).fitness[0, 0]))
        best["original's algorithm"].append(original(space, predicting, price, LIMIT, settings, seed)())
        drawn = drawn_until_feasible(sampler(space, seed), price, LIMIT, evaluations)
        best["random"].append(float(max(predicting(part).max() for part in np.array_split(drawn, 50))))
    return {"limit": LIMIT, "evaluations": evaluations, "best": best}


def small_space() -> ArchitectureSpace:
    """Three blocks, or two: 221,184 genomes."""
    stages = (space_lib.Stage(8, 1, 1, 2), space_lib.Stage(16, 2, 1, 1))
    return dataclasses.replace(
        space_lib.find("digits"), stages=stages, bits=(4, 8), expansion=(2, 3), kernels=(3, 5), excluded=(5, 4)
    )


def optimum(effort: Effort) -> Document:
    """How often the optimum of an enumerable space is found, under a limit that a fifth of its genomes meet."""
    space = small_space()
    counts = tuple(space.search_space.option_counts)
    genomes = np.indices(counts).reshape(len(counts), -1).T.astype(np.int32)
    genomes = genomes[np.asarray(space.is_valid(jnp.asarray(genomes)))]
    table = space.cost_table(COSTS["bitfusion_latency"])
    costs = at_once(table)(genomes)
    limit = float(np.quantile(costs, 0.2))
    feasible = genomes[costs <= limit]
    function = functools.partial(predict, space)
    predicting, evolve = jax.jit(function), evolution.make(space, {"latency": table}, effort.settings).evolve
    hits = 0
    for seed in range(effort.small_seeds):
        layers = weights(space, seed)
        best = max(float(predicting(layers, jnp.asarray(part)).max()) for part in np.array_split(feasible, 16))
        found = float(evolve(Partial(function, layers), [[limit]], jax.random.key(seed)).fitness[0, 0])
        hits += found >= best - 1e-3 * abs(best)
    return {
        "genomes": len(genomes),
        "feasible": len(feasible),
        "within": 1e-3,
        "seeds": effort.small_seeds,
        "found": hits,
    }


def measure(effort: Effort) -> Document:
    """All of it."""
    space = space_lib.find("paper")
    table = space.cost_table(COSTS["bitfusion_latency"])
    return {
        "command": "python -m benchmarks.apq_search",
        "device": f"{os.cpu_count()} CPU cores",
        "repetitions": effort.repetitions,
        "slow_repetitions": effort.slow_repetitions,
        "limits": {"loose": LIMIT, "tight": TIGHT, "tight with all layers": TIGHT_WITH_ALL_LAYERS, "many": MANY},
        "speed": speed(space, table, effort),
        "quality": quality(space, table, effort),
        "optimum": optimum(effort),
    }


def markdown(document: Document) -> str:
    """The tables of the README."""
    fast, limits, found = document["speed"], document["limits"], document["optimum"]
    yardstick, quality = fast["yardstick"], document["quality"]
    seconds = fast["seconds"]
    rows = [
        (f"ours, {limits['loose']} ms", f"{seconds['loose']:.2f}"),
        (f"ours, {limits['tight']} ms", f"{seconds['tight']:.2f}"),
        (f"ours, {len(limits['many'])} limits in one call", f"{seconds['many']:.2f}"),
        (f"ours, {limits['loose']} ms, first call with compilation", f"{seconds['first call']:.2f}"),
        (
            f"the original's algorithm in NumPy, priced child by child, {limits['loose']} ms",
            f"{yardstick['seconds']:.2f}, {yardstick['time_over_ours']:.1f} × ours",
        ),
        (
            f"the same, {limits['tight with all layers']} ms",
            f"{yardstick['tight_seconds']:.2f}, {yardstick['tight_time_over_ours']:.1f} × ours",
        ),
        (
            "the first of these with all children of a generation priced at once",
            f"{yardstick['vectorised_seconds']:.2f}, {yardstick['vectorised_time_over_ours']:.1f} × ours",
        ),
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
        f"Of {found['genomes']:,} genomes the best within the limit is found, or one within {found['within']:.1%} of "
        f"it, with {found['found']} of {found['seeds']} seeds.",
        f"The predictor rates {fast['predicted_per_second']:,.0f} genomes a second.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures and prints; stores, unless it was quick."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smoke test, whose figures mean nothing")
    quick = parser.parse_args().quick
    document = measure(QUICK if quick else Effort())
    print(markdown(document))
    if not quick:
        RESULTS.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
