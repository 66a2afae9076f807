"""The search step: the best genome for each set of budgets, in one compiled call (APQ, §3.3 and Algorithm 1)."""

import hashlib
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from apq_jax import evolution
from apq_jax.selection import SELECTIONS, on_front
from hwcost import pricing
from hwcost.costs import find_cost
from launch.apq import fit_predictor
from launch.apq.pipeline import PREDICTOR, REPORTED_COSTS, SEARCH, SUMMARY, Pipeline
from launch.training.run_directory import Inputs
from launch.training.settings import ConfigError


def run(pipeline: Pipeline) -> None:
    """Searches with the accuracies of the quantised predictor as fitness, and writes the networks found.

    Raises:
      ConfigError: there are no budgets; or the same was searched for with another predictor.
      evolution.BudgetError: no network found meets a set of budgets.
    """
    if not pipeline.budgets:
        raise ConfigError("no budgets: give --budget or --config.search.budgets")
    config, tables = pipeline.config.search, pipeline.tables
    budgets = [dict(budget) for budget in pipeline.budgets]
    predictor_summary = pipeline.read(f"{PREDICTOR}/{SUMMARY}")
    fit_predictor.check_records(pipeline)
    asked = {
        "budgets": budgets,
        "settings": {key: value for key, value in config.to_dict().items() if key != "budgets"},
        "predictor": {key: predictor_summary[key] for key in ("records", "settings")},
    }
    inputs = _inputs(pipeline)
    if pipeline.done(SEARCH, inputs, **asked):
        return
    fitness = Partial(partial(fit_predictor.predict_accuracies, pipeline.space), fit_predictor.read_predictor(pipeline))
    settings = evolution.Settings(config.population, config.parents, config.mutation, config.generations)
    evolve = evolution.make(pipeline.space, tables, settings, SELECTIONS[config.selection]).evolve
    limits = np.asarray([list(budget.values()) for budget in budgets])
    seconds = []
    for _ in ("compiling and searching", "searching"):
        pipeline.stop_if_asked()
        start = time.perf_counter()
        result = evolve(fitness, limits, jax.random.key(pipeline.config.seed + 3))
        seconds.append(time.perf_counter() - start)
    costs = list(dict.fromkeys([*tables, *REPORTED_COSTS]))
    networks = [
        network
        for number, budget in enumerate(budgets)
        for network in _networks_within(
            pipeline, budget, costs, result, number, whole_front=config.selection == "nsga2"
        )
    ]
    pipeline.write(
        SEARCH,
        {
            **asked,
            "inputs": inputs,
            "units": {name: find_cost(name).unit for name in costs},
            "seconds": round(seconds[1], 3),
            "seconds_with_compilation": round(seconds[0], 3),
            "found": networks,
            "history": np.round(result.history, 6)[:, :: max(config.generations // 100, 1)].tolist(),
        },
    )
    pipeline.note(f"{len(networks)} networks found in {seconds[1]:.2f} s ({seconds[0]:.2f} s with compilation)")


def _inputs(pipeline: Pipeline) -> Inputs:
    """Digests of the predictor and of the cost tables."""
    tables = {
        f"costs {name}": hashlib.sha256(b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(table))).hexdigest()
        for name, table in pipeline.tables.items()
    }
    return {"predictor": fit_predictor.predictor_digest(pipeline), **tables}


def check_predictor(pipeline: Pipeline) -> None:
    """Checks that the networks found were found with the predictor that is there.

    Raises:
      ConfigError: they were found with another one, or that one is of other records.
    """
    fit_predictor.check_records(pipeline)
    pipeline.check_made_from(SEARCH, {"predictor": fit_predictor.predictor_digest(pipeline)})


def _networks_within(
    pipeline: Pipeline,
    budget: dict[str, float],
    costs: list[str],
    result: evolution.Result,
    number: int,
    *,
    whole_front: bool,
) -> list[dict[str, Any]]:
    """The best network for one set of budgets, or the Pareto front of fitness and costs within it, cheapest first."""
    space, tables = pipeline.space, pipeline.tables
    fitness, searched = result.fitness[number], result.costs[number]
    places = np.flatnonzero(on_front(fitness, searched)) if whole_front else np.zeros(1, int)
    all_tables = {name: tables[name] if name in tables else space.cost_table(find_cost(name)) for name in costs}
    rows = []
    for place in places[np.argsort(searched[places, 0])]:
        genome = np.asarray(space.canonical(jnp.asarray(result.genomes[number, place])))
        evolution.verify(tables, genome, np.asarray(list(budget.values())))
        rows.append(
            {
                "budget": budget,
                "costs": {name: pricing.price_exactly(table, genome) for name, table in all_tables.items()},
                "predicted_accuracy": float(fitness[place]),
                "choices": space.search_space.decode(genome),
            }
        )
    return rows
