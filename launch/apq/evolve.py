"""The search step: the best genome for each set of budgets, in one compiled call (APQ, §3.3 and Algorithm 1)."""

import hashlib
import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from apq_jax import evolution, within_budgets
from apq_jax.selection import SELECTIONS, on_front
from hwcost import pricing
from hwcost.costs import find_cost
from launch.apq import fit_predictor
from launch.apq.pipeline import PREDICTOR, REPORTED_COSTS, SEARCH, SUMMARY, Pipeline
from launch.apq.search_ways import JOINT, Way, limits_of
from launch.training.run_directory import Inputs
from launch.training.settings import ConfigError


def run(pipeline: Pipeline) -> None:
    """Searches with the accuracies of the quantised predictor as fitness, and writes the networks found.

    The baselines of the config are searched for the same budgets. Times are those of the joint search.

    Raises:
      ConfigError: there are no budgets; or the same was searched for with another predictor.
      within_budgets.BudgetError: no network found meets a set of budgets.
    """
    if not pipeline.budgets:
        raise ConfigError("no budgets: give --budget or --config.search.budgets")
    config, tables = pipeline.config.search, pipeline.tables
    budgets = [dict(budget) for budget in pipeline.budgets]
    predictor_summary = pipeline.read(f"{PREDICTOR}/{SUMMARY}")
    fit_predictor.check_records(pipeline)
    asked = {
        "budgets": budgets,
        "settings": {key: value for key, value in json.loads(config.to_json_best_effort()).items() if key != "budgets"},
        "predictor": {key: predictor_summary[key] for key in ("records", "settings")},
    }
    inputs = _inputs(pipeline)
    if pipeline.done(SEARCH, inputs, **asked):
        return
    limits, costs = limits_of(budgets, list(tables)), list(dict.fromkeys([*tables, *REPORTED_COSTS]))
    seconds, history, networks = [], None, []
    for way in pipeline.ways:
        evolve = make_evolution(pipeline, way)
        for _ in ("compiling and searching", "searching") if way.name == JOINT else ("searching",):
            pipeline.stop_if_asked()
            start = time.perf_counter()
            result = evolve(limits[list(way.sets)], jax.random.key(pipeline.config.seed + 3))
            seconds.append(time.perf_counter() - start)
        if way.name == JOINT:
            history = np.round(result.history, 6)[:, :: max(config.generations // 100, 1)].tolist()
        networks += [
            {"way": way.name, **network}
            for place, number in enumerate(way.sets)
            for network in _networks_within(
                pipeline, budgets[number], costs, result, place, whole_front=config.selection == "nsga2"
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
            "history": history,
        },
    )
    joint = sum(network["way"] == JOINT for network in networks)
    baselines = f", and {len(networks) - joint} of baselines" if len(networks) > joint else ""
    pipeline.note(f"{joint} networks found in {seconds[1]:.2f} s ({seconds[0]:.2f} s with compilation){baselines}")


def make_evolution(pipeline: Pipeline, way: Way) -> Callable[[np.ndarray, jax.Array], evolution.Result]:
    """The evolution of a way of searching, of limits, float64[B, M], and a PRNG key."""
    config = pipeline.config.search
    fitted = fit_predictor.read_predictor(pipeline, way.predictor)
    fitness = Partial(partial(fit_predictor.predict_accuracies, pipeline.space), fitted)
    settings = evolution.Settings(config.population, config.parents, config.mutation, config.generations)
    return partial(evolution.make(way.space, pipeline.tables, settings, SELECTIONS[config.selection]).evolve, fitness)


def _inputs(pipeline: Pipeline) -> Inputs:
    """Digests of the predictors and of the cost tables."""
    tables = {
        f"costs {name}": hashlib.sha256(b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(table))).hexdigest()
        for name, table in pipeline.tables.items()
    }
    return {**_predictors(pipeline), **tables}


def _predictors(pipeline: Pipeline) -> Inputs:
    """Digests of the predictors that the search uses."""
    kinds = dict.fromkeys(way.predictor for way in pipeline.ways)
    names = {kind: "predictor" if kind == "quantized" else f"predictor {kind}" for kind in kinds}
    return {names[kind]: fit_predictor.predictor_digest(pipeline, kind) for kind in kinds}


def check_predictor(pipeline: Pipeline) -> None:
    """Checks that the networks found were found with the predictor that is there.

    Raises:
      ConfigError: they were found with another one, or that one is of other records.
    """
    fit_predictor.check_records(pipeline)
    pipeline.check_made_from(SEARCH, _predictors(pipeline))


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
        within_budgets.verify(tables, genome, limits_of([budget], list(tables))[0])
        rows.append(
            {
                "budget": budget,
                "costs": {name: pricing.price_exactly(table, genome) for name, table in all_tables.items()},
                "predicted_accuracy": float(fitness[place]),
                "choices": space.search_space.decode(genome),
            }
        )
    return rows
