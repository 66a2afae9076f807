"""APQ on CIFAR-10: records that predictors need, and the networks found, against other ways of searching.

    python -m benchmarks.apq_cifar10 --data_dir=DIR [--workdir=runs/apq_cifar10]

Networks, formats and costs are those of `benchmarks.fliqnas`, which shows the networks that this one trains to the end
beside its own. With the records of one once-for-all network it searches within bit operations, latency and energy:

* jointly (APQ, Eq. 4), by the predictor without transfer (Table 2: Ours-A), and with one format in all blocks (Figures
  5 and 6, right);
* in sequence, as separate tools do (Eq. 1–3): kernels by float accuracy at 8 bits, then widths, then formats, each
  stage within its share of the latency.

All of these are fine-tuned for a few steps, as records are, and evaluated on the test images. Those found jointly
within bit operations are then cut out and trained for an epoch, as by `python -m launch.apq finish`. Two hours of one
core; writes results/apq_cifar10.json, docs/apq_predictors.svg and docs/apq_COST.svg.
"""

import argparse
import dataclasses
import json
import pathlib
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict
from rich.console import Console
from rich.progress import track
from scipy.stats import kendalltau

from apq_jax import within_budgets
from apq_jax.restricted import RestrictedSpace
from benchmarks import fliqnas, pictures, trained_networks
from configs import apq_common, apq_fliqnas_cifar10
from hwcost import pricing
from hwcost.costs import find_cost
from launch.apq import evolve, finish, fit_predictor, measure_records, record_task, train_supernet
from launch.apq.pipeline import PREDICTOR, RECORD_FILES, SEARCH, SUMMARY, SUPERNET, Pipeline, prepare_pipeline
from launch.apq.search_ways import FROM_SCRATCH, Way, with_fixed_bits
from launch.reports import apq_figures, apq_page
from launch.reports.apq_figures import SEQUENTIAL
from launch.reports.figures import readable_cost
from launch.training.run_directory import read_json

RESULTS = pathlib.Path(__file__).parent / "results" / "apq_cifar10.json"
COMPARED = "compared.json"
LATENCY = "bitfusion_latency"
TARGETS = {  # × int4 of the base
    "bit_operations": fliqnas.TARGETS,
    LATENCY: (0.8, 1.2),
    "bitfusion_energy": (0.8, 1.1),
}


class Stage(NamedTuple):
    """A stage of the sequential search: kind of decisions, predictor, and limit as a multiple of the budget."""

    kind: str
    predictor: str
    share: float


# APQ, Table 2: the latency is 13.14 ms after ProxylessNAS, 9.77 ms after AMC and 8.45 ms after HAQ.
SEQUENCE = (
    Stage("kernel", "float", 13.14 / 8.45),
    Stage("width", "float", 9.77 / 8.45),
    Stage("format", "quantized", 1.0),
)


def get_config() -> ConfigDict:
    """The settings of the experiment, but for where the data are."""
    config = apq_fliqnas_cifar10.get_config()
    config.model.stages = fliqnas.STAGES
    config.supernet.epochs = 4.0
    config.records.update({"float": 150, "quantized": 80, "calibration_batches": 4, "fine_tuning_steps": 10})
    config.predictor.update({"held_out": 30, "counts": (10, 20, 50)})
    config.finish.epochs = 1.0
    return config


def prepare(config: ConfigDict, workdir: pathlib.Path, console: Console) -> Pipeline:
    """The experiment in a work directory, claimed."""
    pipeline = prepare_pipeline(config, workdir, console)
    pipeline.claim()
    return pipeline


def sequential_search(pipeline: Pipeline, limit: float) -> np.ndarray:
    """The genome, int32[D], that the sequential search finds within a latency limit in ms (APQ, Eq. 1–3).

    If no network is within the limit of a stage, because widths or bits are still at their largest, the lowest latency
    in reach is the limit.
    """
    tables = {LATENCY: pipeline.tables[LATENCY]}
    pipeline, genome = dataclasses.replace(pipeline, tables=tables), with_fixed_bits(pipeline.space, "int8").held
    for stage in SEQUENCE:
        space = RestrictedSpace(pipeline.space, genome, (stage.kind,))
        least = pricing.price_exactly(tables[LATENCY], within_budgets.cheapest(space, tables, np.inf * np.ones(1)))
        stage_limit = max(stage.share * limit, least * (1 + 1e-5)) if stage.share > 1 else limit
        evolve_stage = evolve.make_evolution(pipeline, Way(SEQUENTIAL, space, stage.predictor, ()))
        result = evolve_stage(np.asarray([[stage_limit]]), jax.random.key(pipeline.config.seed + 3))
        genome = result.genome[0]
    return genome


def compare(pipeline: Pipeline) -> list[dict[str, Any]]:
    """The networks that all ways of searching find, with costs, predicted accuracy, and measured test accuracy."""
    asked = {
        "budgets": list(pipeline.budgets),
        "ways": [way.name for way in pipeline.ways],
        "supernet": pipeline.read(f"{SUPERNET}/{SUMMARY}")["state_sha256"],
        "predictors": pipeline.read(f"{PREDICTOR}/{SUMMARY}")["files"],
    }
    if pipeline.done(COMPARED, **asked):
        return pipeline.read(COMPARED)["networks"]
    evolve.run(pipeline)
    space, networks = pipeline.space, pipeline.read(SEARCH)["found"]
    predict = jax.jit(partial(fit_predictor.predict_accuracies, space, fit_predictor.read_predictor(pipeline)))
    for budget in track(pipeline.budgets, "sequential search", console=pipeline.console):
        if LATENCY in budget:
            genome = sequential_search(pipeline, budget[LATENCY])
            networks.append(
                {
                    "way": SEQUENTIAL,
                    "budget": budget,
                    "costs": {name: pricing.price_exactly(table, genome) for name, table in pipeline.tables.items()},
                    "predicted_accuracy": float(predict(genome[None])[0]),
                    "choices": space.search_space.decode(genome),
                }
            )
    dataset, state = pipeline.open_data(), train_supernet.read_supernet(pipeline)
    batches = record_task.read_batches(pipeline, dataset)
    size = pipeline.config.records.batch_size
    batches = batches._replace(validation=list(dataset.eval_batches("test", batch_size=size)))
    measure = record_task.make_measure(record_task.make_task("quantized", pipeline, state, batches))
    for network in track(networks, "found networks", console=pipeline.console):
        network["accuracy"] = measure(space.search_space.encode(network["choices"]))
    pipeline.write(COMPARED, {**asked, "networks": networks})
    return networks


def train_found(pipeline: Pipeline) -> list[dict[str, Any]]:
    """Rows, as of `benchmarks.fliqnas`, of the networks found within the budgets of the config, trained to the end."""
    evolve.run(pipeline)
    finish.run(pipeline)
    int4, rows = fliqnas.bit_operations("int4"), []
    for network, target in zip(pipeline.read(SUMMARY)["networks"], fliqnas.TARGETS, strict=True):
        summary = read_json(pipeline.workdir / "found" / network["name"] / "run" / SUMMARY)
        rows.append(
            {
                "network": "APQ int_s",
                "target": target,
                **trained_networks.measured([summary]),
                "cost_over_int4": [summary["cost"] / int4],
                "predicted_accuracy": network["predicted_accuracy"],
                "choices": network["choices"],
            }
        )
    return rows


def measure_all(data_dir: str, workdir: pathlib.Path, console: Console) -> dict[str, Any]:
    """The document of all results."""
    config = get_config()
    config.data.data_dir = data_dir
    pipeline = prepare(config, workdir, console)
    for step in (train_supernet.run, measure_records.run, fit_predictor.run):
        step(pipeline)
    others = config.copy_and_resolve_references()
    others.search.baselines = (FROM_SCRATCH, *fliqnas.UNIFORM)
    others.search.budgets = tuple(
        budget for cost, targets in TARGETS.items() for budget in apq_common.one_each(cost, targets, "int4")
    )
    networks = compare(prepare(others, workdir, console))
    ranks = kendalltau(*([network[key] for network in networks] for key in ("predicted_accuracy", "accuracy")))
    return {
        "command": "python -m benchmarks.apq_cifar10 --data_dir=DIR",
        "fine_tuning_steps": config.records.fine_tuning_steps,
        "supernet": pipeline.read(f"{SUPERNET}/{SUMMARY}"),
        "predictor": pipeline.read(f"{PREDICTOR}/{SUMMARY}"),
        "records": {
            kind: dict(zip(("least", "mean", "most"), (v.min(), v.mean(), v.max()), strict=True))
            for kind, v in (
                (kind, measure_records.read_records(pipeline, kind)[1].astype(float)) for kind in RECORD_FILES
            )
        },
        "networks": networks,
        "kendall_of_networks": float(ranks.statistic),
        "trained": train_found(pipeline),
    }


def of_cost(networks: list[dict[str, Any]], cost: str) -> list[dict[str, Any]]:
    """The networks that were searched within one cost."""
    return [network for network in networks if list(network["budget"]) == [cost]]


def markdown(document: dict[str, Any]) -> str:
    """The Markdown tables of docs/apq.md."""
    lines = apq_page.predictor_table(document["predictor"]["quantized"])
    for cost in TARGETS:
        networks = of_cost(document["networks"], cost)
        ways = list(dict.fromkeys(network["way"] for network in networks))
        factor, unit = readable_cost(find_cost(cost).unit)
        title = f"{cost.replace('_', ' ')}, {unit} at most"
        lines += ["", f"| {title} | {' | '.join(map(apq_figures.way_in_words, ways))} |"]
        lines += ["|---|" + "---|" * len(ways)]
        accuracies: dict[float, dict[str, float]] = {}
        for network in networks:
            accuracies.setdefault(network["budget"][cost], {})[network["way"]] = network["accuracy"]
        for limit, of_way in accuracies.items():
            cells = (f"{100 * of_way[way]:.2f} %" if way in of_way else "–" for way in ways)
            lines.append(f"| {limit * factor:.4g} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Runs the steps that are not done yet, measures, and writes results and pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True, help="directory of TFDS with cifar10 prepared")
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/apq_cifar10"))
    arguments = parser.parse_args()
    logging.set_verbosity(logging.WARNING)
    document = measure_all(arguments.data_dir, arguments.workdir, Console())
    RESULTS.write_text(json.dumps(document, indent=1) + "\n")
    pictures.write("apq_predictors.svg", apq_figures.predictor_curve(document["predictor"]["quantized"]))
    for cost in TARGETS:
        networks = of_cost(document["networks"], cost)
        pictures.write(f"apq_{cost}.svg", apq_figures.front_by_way(networks, cost, find_cost(cost).unit))
    print(markdown(document))


if __name__ == "__main__":
    main()
