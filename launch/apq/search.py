"""Finds the best genome for each set of budgets, all in one compiled call (paper, §3.3)."""

import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from apq_jax import evolution
from apq_jax.selection import SELECTIONS, on_front
from hwcost import table as table_lib
from hwcost.costs import COSTS, find_cost
from launch.apq import predictor
from launch.apq.pipeline import BIT_OPERATIONS, SEARCH, Pipeline
from launch.experiment import ConfigError


def search(pipeline: Pipeline) -> None:
    """Searches with the predictor of quantised accuracies as fitness.

    Raises:
      ConfigError: no budgets.
      evolution.BudgetError: one that no network meets.
    """
    if not pipeline.budgets:
        raise ConfigError("no budgets: give --budget=NAME=VALUE or --config.search.budgets")
    config, tables = pipeline.config.search, pipeline.tables
    asked = [dict(each) for each in pipeline.budgets]
    settings = {key: value for key, value in config.to_dict().items() if key != "budgets"}
    if (pipeline.workdir / SEARCH).exists():
        there = pipeline.read(SEARCH)
        if (there["budgets"], there["settings"]) == (asked, settings):
            pipeline.note(f"already complete: {pipeline.workdir / SEARCH}")
            return
    fitness = Partial(partial(predictor.of_genomes, pipeline.space), predictor.read(pipeline))
    numbers = evolution.Settings(config.population, config.parents, config.mutation, config.generations)
    evolve = evolution.make(pipeline.space, tables, numbers, SELECTIONS[config.selection]).evolve
    limits = np.asarray([list(each.values()) for each in asked])
    seconds = []
    for _ in ("compiling and searching", "searching"):
        start = time.perf_counter()
        result = evolve(fitness, limits, jax.random.key(pipeline.config.seed + 3))
        seconds.append(time.perf_counter() - start)
    found = [
        network
        for number, budget in enumerate(asked)
        for network in _found(pipeline, budget, result, number, whole_front=config.selection == "nsga2")
    ]
    pipeline.write(
        SEARCH,
        {
            "budgets": asked,
            "settings": settings,
            "units": {name: find_cost(name).unit for name in tables},
            "seconds": round(seconds[1], 3),
            "seconds_with_compilation": round(seconds[0], 3),
            "found": found,
            "history": np.round(result.history, 6)[:, :: max(config.generations // 100, 1)].tolist(),
        },
    )
    pipeline.note(f"{len(found)} networks found in {seconds[1]:.2f} s ({seconds[0]:.2f} s with compilation)")


def _found(
    pipeline: Pipeline, budget: dict[str, float], result: evolution.Result, number: int, *, whole_front: bool
) -> list[dict[str, Any]]:
    """The best genome for one set of budgets, or the front of fitness and costs below it, the cheapest first."""
    space, tables = pipeline.space, pipeline.tables
    fitness, costs = result.fitness[number], result.costs[number]
    places = np.flatnonzero(on_front(fitness, costs)) if whole_front else np.zeros(1, int)
    bit_operations = space.cost_table(COSTS[BIT_OPERATIONS])
    rows = []
    for place in places[np.argsort(costs[places, 0])]:
        genome = np.asarray(space.canonical(jnp.asarray(result.genomes[number, place])))
        cost = evolution.verify(tables, genome, np.asarray(list(budget.values())))
        rows.append(
            {
                "budget": budget,
                "costs": dict(zip(tables, cost.tolist(), strict=True)),
                BIT_OPERATIONS: table_lib.price_exactly(bit_operations, genome),
                "predicted_accuracy": float(fitness[place]),
                "choices": space.search_space.decode(genome),
            }
        )
    return rows
