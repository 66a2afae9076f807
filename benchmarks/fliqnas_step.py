"""Time and memory of a step that searches an architecture against one that searches formats of the largest network.

    python -m benchmarks.fliqnas_step

The network of configs/fliqnas_cifar10.py at 12×12 pixels, batch size 128; ratios of medians over interleaved turns, and
temporary memory by XLA's memory analysis. The joint kernels of warm-up are in the step, drawn or not. Writes
results/fliqnas_step.json beside this file.
"""

import dataclasses
import functools
import json
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from benchmarks import timing
from configs import fliqnas_cifar10
from fliqs_jax.search import make_search_step
from launch import data
from launch.training import finished
from launch.training.experiment import Experiment, prepare_experiment

RESULTS = pathlib.Path(__file__).parent / "results" / "fliqnas_step.json"
BATCH = 128


def _prepared(*, architecture: bool = True, **model: Any) -> Experiment:
    rng = np.random.default_rng(0)
    images = rng.standard_normal((4 * BATCH, 12, 12, 3)).astype(np.float32)
    split = data.Split(images, rng.integers(0, 10, len(images)).astype(np.int32))
    config = fliqnas_cifar10.get_config()
    config.data = ConfigDict({"name": "mine:images", "valid_examples": BATCH})
    config.update({"baselines": (), "batch_size": BATCH, "valid_batch_size": BATCH})
    if not architecture:
        config.architecture = ConfigDict()
    with config.unlocked():
        config.model.update(model)
    return prepare_experiment(config, source=data.Arrays(train=split, test=split, classes=10))


def compiled(experiment: Experiment) -> tuple[Any, Any, dict[str, jax.Array]]:
    """The compiled search step, a state after warm-up, and a batch."""
    dataset = experiment.source.open(valid_examples=BATCH, seed=0)
    batch = jax.device_put(next(dataset.train_batches("train", batch_size=BATCH, first_step=0, augmented=False)))
    state = finished.initial_state(experiment, experiment.trials[0])
    search = dataclasses.replace(experiment.search, total_steps=1000, joint_steps=250)
    step = jax.jit(make_search_step(search), donate_argnums=0).lower(state, batch, batch).compile()
    state, _ = step(state, batch, batch)  # The first step profiles.
    return step, state._replace(step=jnp.asarray(500, jnp.int32)), batch


def main() -> None:
    """Measures, stores and prints."""
    whole = _prepared()
    largest: Any = whole.search.model.module
    alone = _prepared(architecture=False, widths=largest.widths, kernels=largest.kernels)
    steps = {"FLIQNAS": compiled(whole), "FLIQS": compiled(alone)}
    states = {name: state for name, (_, state, _) in steps.items()}

    def turn(name: str) -> None:
        step, _, batch = steps[name]
        states[name], metrics = step(states[name], batch, batch)
        jax.block_until_ready(metrics)

    medians = timing.interleaved_medians({name: functools.partial(turn, name) for name in steps})
    mebibytes = {name: step.memory_analysis().temp_size_in_bytes / 2**20 for name, (step, *_) in steps.items()}
    document = {
        "command": "python -m benchmarks.fliqnas_step",
        "median_seconds": medians,
        "temporary_mebibytes": mebibytes,
        "time_ratio": medians["FLIQNAS"] / medians["FLIQS"],
        "memory_ratio": mebibytes["FLIQNAS"] / mebibytes["FLIQS"],
        "turns": timing.REPETITIONS,
        "device": jax.devices()[0].device_kind,
    }
    RESULTS.write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(document, indent=1))


if __name__ == "__main__":
    sys.exit(main())
