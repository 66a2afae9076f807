"""APQ on CIFAR-10: how many records predictors need, and whether predictions rank the networks that are found.

    python -m benchmarks.apq_cifar10 --data_dir=DIR [--workdir=runs/apq_cifar10]

Runs the steps of `configs/apq_cifar10.py` up to the search, with a once-for-all network and records as small as three
quarters of an hour on two cores allow. Then every found network is measured as records are, by a short fine-tuning
under its bits. Writes results/apq_cifar10.json beside this file and the picture docs/apq_predictors.svg.
"""

import argparse
import json
import pathlib
from typing import Any

import jax.numpy as jnp
import optax
from absl import logging
from rich.console import Console
from rich.progress import track
from scipy.stats import kendalltau

from apq_jax import accuracy
from benchmarks import pictures
from configs import apq_cifar10
from fliqs_jax import losses
from launch import apq_figures, apq_pipeline, apq_steps
from launch.apq_pipeline import Pipeline

RESULTS = pathlib.Path(__file__).parent / "results" / "apq_cifar10.json"
EFFORT = {"supernet.epochs": 4.0, "records.float": 200, "records.quantized": 90, "predictor.held_out": 30}


def measured(pipeline: Pipeline) -> list[dict[str, Any]]:
    """Predicted and measured accuracy of each found network."""
    config, space = pipeline.config.records, pipeline.space
    measure = accuracy.make_quantized_accuracy(
        space,
        pipeline.full,
        optimizer=optax.sgd(config.fine_tuning_rate, momentum=0.9),
        loss=losses.cross_entropy(pipeline.config.supernet.label_smoothing),
    )
    state, data = apq_steps.read_supernet(pipeline), apq_steps.measure_data(pipeline, apq_steps.open_data(pipeline))
    rows = []
    for found in track(pipeline.read(apq_pipeline.SEARCH)["found"], "found networks", console=pipeline.console):
        genome = jnp.asarray(space.search_space.encode(found["choices"]))
        reached = measure(state.params, state.batch_stats, data, genome)
        rows.append({key: found[key] for key in ("budget", "costs", "predicted_accuracy")} | {"accuracy": reached})
    return rows


def markdown(document: dict[str, Any]) -> str:
    """The tables of the README."""
    lines = ["| quantised records | pairs in order, transferred | from scratch |", "|---|---|---|"]
    for point in document["predictor"]["quantized"]:
        shares = (f"{100 * point[kind]['pairwise']:.1f} %" for kind in ("transferred", "from_scratch"))
        lines.append(f"| {point['records']} | {' | '.join(shares)} |")
    lines += ["", "| ms on BitFusion | predicted | after a short fine-tuning |", "|---|---|---|"]
    for row in document["found"]:
        (cost,) = row["costs"].values()
        lines.append(f"| {cost:.3f} | {100 * row['predicted_accuracy']:.2f} % | {100 * row['accuracy']:.2f} % |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Runs what is missing, measures and stores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True, help="where tfds has cifar10 prepared")
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/apq_cifar10"))
    arguments = parser.parse_args()
    logging.set_verbosity(logging.WARNING)
    config = apq_cifar10.get_config()
    config.data.data_dir = arguments.data_dir
    config.update_from_flattened_dict(EFFORT)
    pipeline = apq_pipeline.prepare(config, arguments.workdir, Console())
    for step in (apq_steps.train_supernet, apq_steps.collect_records, apq_steps.fit_predictors, apq_steps.search):
        step(pipeline)
    found = measured(pipeline)
    predictor = pipeline.read(f"{apq_pipeline.PREDICTOR}/{apq_pipeline.SUMMARY}")
    ranks = kendalltau([row["predicted_accuracy"] for row in found], [row["accuracy"] for row in found])
    document = {
        "command": "python -m benchmarks.apq_cifar10 --data_dir=DIR",
        "effort": EFFORT,
        "supernet": pipeline.read(f"{apq_pipeline.SUPERNET}/{apq_pipeline.SUMMARY}"),
        "predictor": predictor,
        "found": found,
        "kendall_of_found": float(ranks.statistic),
    }
    RESULTS.write_text(json.dumps(document, indent=1) + "\n")
    pictures.write("apq_predictors.svg", apq_figures.predictor_curve(predictor["quantized"]))
    print(markdown(document))


if __name__ == "__main__":
    main()
