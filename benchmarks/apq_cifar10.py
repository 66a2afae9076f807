"""APQ on CIFAR-10: records that predictors need, ranks of the networks found, and joint against sequential search.

    python -m benchmarks.apq_cifar10 --data_dir=DIR [--workdir=runs/apq_cifar10]     (an hour and a half on two cores)

It runs the steps of `configs/apq_cifar10.py` up to the joint search (APQ, Eq. 4). Then it searches in sequence, as
separate tools do (APQ, Eq. 1–3): kernels and depths by float accuracy at 8 bits, then channels, then bits, each stage
within its share of the latency. The networks of both searches are fine-tuned briefly in their formats, from the weights
of the once-for-all network, and evaluated on the test images (APQ, Figures 6 and 7). The results go to
results/apq_cifar10.json beside this file, docs/apq_predictors.svg and docs/apq_joint.svg.
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
from jax.tree_util import Partial
from rich.console import Console
from rich.progress import track
from scipy.stats import kendalltau

from apq_jax import evolution, within_budgets
from apq_jax.architectures import BIT_DECISIONS
from apq_jax.restricted import RestrictedSpace
from benchmarks import pictures
from configs import apq_cifar10
from hwcost import pricing
from launch.apq import evolve, fit_predictor, measure_records, record_task, train_supernet
from launch.apq.pipeline import PREDICTOR, RECORD_FILES, SEARCH, SUMMARY, SUPERNET, Pipeline, prepare_pipeline
from launch.reports import apq_figures, apq_page

RESULTS = pathlib.Path(__file__).parent / "results" / "apq_cifar10.json"
COST = "bitfusion_latency"
FINE_TUNING_STEPS = 60  # three times those of a record


class Stage(NamedTuple):
    """A stage of the sequential search: kinds of decisions, predictor, and limit as a multiple of the budget."""

    kinds: tuple[str, ...]
    predictor: str
    share: float


# APQ, Table 2: the latency is 13.14 ms after ProxylessNAS, 9.77 ms after AMC and 8.45 ms after HAQ.
SEQUENCE = (
    Stage(("kernel", "depth"), "float", 13.14 / 8.45),
    Stage(("channels",), "float", 9.77 / 8.45),
    Stage(BIT_DECISIONS, "quantized", 1.0),
)


def sequential_search(pipeline: Pipeline, limit: float) -> np.ndarray:
    """The genome, int32[D], that the sequential search finds within a latency limit in ms (APQ, Eq. 1–3).

    If no network is within the limit of a stage, because channels or bits are still at their widest, the lowest latency
    in reach is the limit.
    """
    genome, tables, config = np.asarray(pipeline.space.largest), pipeline.tables, pipeline.config.search
    settings = evolution.Settings(config.population, config.parents, config.mutation, config.generations)
    for stage in SEQUENCE:
        space = RestrictedSpace(pipeline.space, genome, stage.kinds)
        least = pricing.price_exactly(tables[COST], within_budgets.cheapest(space, tables, np.asarray([np.inf])))
        fitness = Partial(
            partial(fit_predictor.predict_accuracies, pipeline.space),
            fit_predictor.read_predictor(pipeline, stage.predictor),
        )
        stage_limit = max(stage.share * limit, least * (1 + 1e-5)) if stage.share > 1 else limit
        result = evolution.make(space, tables, settings).evolve(
            fitness, [[stage_limit]], jax.random.key(pipeline.config.seed + 3)
        )
        genome = result.genome[0]
    return genome


def compare_searches(pipeline: Pipeline) -> list[dict[str, Any]]:
    """The networks of both searches for each budget: latency, predicted accuracy, and measured test accuracy."""
    space = pipeline.space
    rows: list[dict[str, Any]] = []
    predict = jax.jit(partial(fit_predictor.predict_accuracies, space, fit_predictor.read_predictor(pipeline)))
    for network in track(pipeline.read(SEARCH)["found"], "sequential search", console=pipeline.console):
        limit = network["budget"][COST]
        for way, genome in (
            ("joint", space.search_space.encode(network["choices"])),
            ("sequential", sequential_search(pipeline, limit)),
        ):
            rows.append(
                {
                    "way": way,
                    "budget": limit,
                    "latency": pricing.price_exactly(pipeline.tables[COST], genome),
                    "predicted_accuracy": float(predict(genome[None])[0]),
                    "choices": space.search_space.decode(genome),
                }
            )
    dataset, state = pipeline.open_data(), train_supernet.read_supernet(pipeline)
    config = pipeline.config.copy_and_resolve_references()
    config.records.fine_tuning_steps = FINE_TUNING_STEPS
    batches = record_task.read_batches(dataclasses.replace(pipeline, config=config), dataset)._replace(
        validation=list(dataset.eval_batches("test", batch_size=config.records.batch_size))
    )
    measure = record_task.make_measure(record_task.make_task("quantized", pipeline, state, batches))
    for row in track(rows, "found networks", console=pipeline.console):
        row["accuracy"] = measure(space.search_space.encode(row["choices"]))
    return rows


def measure_all(pipeline: Pipeline) -> dict[str, Any]:
    """The document of all results; `compare_searches`, which takes a quarter of an hour, runs only if not done yet."""
    for step in (train_supernet.run, measure_records.run, fit_predictor.run, evolve.run):
        step(pipeline)
    search = pipeline.read(SEARCH)
    if not pipeline.done("compared.json", search=search):
        pipeline.write("compared.json", {"search": search, "networks": compare_searches(pipeline)})
    rows = pipeline.read("compared.json")["networks"]
    joint = [row for row in rows if row["way"] == "joint"]
    ranks = kendalltau([row["predicted_accuracy"] for row in joint], [row["accuracy"] for row in joint])
    return {
        "command": "python -m benchmarks.apq_cifar10 --data_dir=DIR",
        "fine_tuning_steps": FINE_TUNING_STEPS,
        "supernet": pipeline.read(f"{SUPERNET}/{SUMMARY}"),
        "predictor": pipeline.read(f"{PREDICTOR}/{SUMMARY}"),
        "records": {
            kind: dict(zip(("least", "mean", "most"), (v.min(), v.mean(), v.max()), strict=True))
            for kind, v in (
                (kind, measure_records.read_records(pipeline, kind)[1].astype(float)) for kind in RECORD_FILES
            )
        },
        "networks": rows,
        "kendall_of_front": float(ranks.statistic),
    }


def markdown(document: dict[str, Any]) -> str:
    """The Markdown tables of docs/apq.md."""
    lines = [
        *apq_page.predictor_table(document["predictor"]["quantized"]),
        "",
        "| at most (ms) | predicted, joint | test, joint | predicted, sequential | test, sequential |",
        "|---|---|---|---|---|",
    ]
    by_budget: dict[float, dict[str, dict[str, Any]]] = {}
    for row in document["networks"]:
        by_budget.setdefault(row["budget"], {})[row["way"]] = row
    for budget, ways in by_budget.items():
        cells = (
            f"{100 * ways[way][key]:.2f} %"
            for way in ("joint", "sequential")
            for key in ("predicted_accuracy", "accuracy")
        )
        lines.append(f"| {budget:g} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Runs the steps that are not done yet, measures, and writes results and figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True, help="directory of TFDS with cifar10 prepared")
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/apq_cifar10"))
    arguments = parser.parse_args()
    logging.set_verbosity(logging.WARNING)
    config = apq_cifar10.get_config()
    config.data.data_dir = arguments.data_dir
    pipeline = prepare_pipeline(config, arguments.workdir, Console())
    pipeline.claim()
    document = measure_all(pipeline)
    RESULTS.write_text(json.dumps(document, indent=1) + "\n")
    pictures.write("apq_predictors.svg", apq_figures.predictor_curve(document["predictor"]["quantized"]))
    pictures.write("apq_joint.svg", apq_figures.joint_and_sequential(document["networks"]))
    print(markdown(document))


if __name__ == "__main__":
    main()
