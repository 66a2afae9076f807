"""Eight devices give the losses of one: same genome everywhere, each device its part of the batch."""

import itertools
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from configs import fliqs_digits
from launch.training import finished, mesh, trial_run
from launch.training.experiment import prepare_experiment
from tests import tiny_network

ROOT = pathlib.Path(__file__).parents[3]
PROGRAM = "import json; from tests.launch.training.test_mesh import first_steps; print(json.dumps(first_steps()))"


def first_steps():
    """What the first steps on all devices of this process do."""
    config = fliqs_digits.get_config()
    config.model, config.epochs, config.clip.source = {"name": tiny_network.NAME}, 1, "profiled"
    prepared = prepare_experiment(config)
    dataset = trial_run.open_data(prepared)
    compiled = trial_run.compile_functions(prepared, dataset, lambda batch: batch)
    parts, whole = mesh.split_batch(compiled.mesh), mesh.replicated(compiled.mesh)
    state = jax.device_put(finished.initial_state(prepared, prepared.trials[0]), whole)
    streams = [
        dataset.train_batches(split, batch_size=config.batch_size, first_step=0, augmented=split == "train")
        for split in ("train", "valid")
    ]
    rows = []
    for batches in itertools.islice(zip(*streams, strict=True), 3):
        placed = [mesh.place_batch(batch, parts) for batch in batches]
        state, metrics = compiled.step(state, *placed)
        rows.append({"loss": float(metrics["loss"]), "genome": metrics["genome"].tolist()})
    if len(jax.devices()) > 1:
        state = compiled.profile(state, placed[0])
        state, _ = compiled.step(state, *placed)  # takes what `profile` gives, on any number of devices
    shards = placed[0]["input"].addressable_shards
    return {
        "rows": rows,
        "devices": len(jax.devices()),
        "parts": len(shards),
        "part": shards[0].data.shape[0],
        "replicated": state.params["stem"]["kernel"].sharding.is_fully_replicated,
    }


def on_eight_devices():
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"XLA_FLAGS": flags}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def results():
    return first_steps(), on_eight_devices()


def test_the_batch_is_split_and_the_state_is_not(results):
    one, eight = results
    assert (one["devices"], one["parts"], one["part"]) == (1, 1, 128)
    assert (eight["devices"], eight["parts"], eight["part"], eight["replicated"]) == (8, 8, 16, True)


def test_genomes_are_the_same_and_losses_agree(results):
    one, eight = results
    assert [row["genome"] for row in one["rows"]] == [row["genome"] for row in eight["rows"]]
    np.testing.assert_allclose([row["loss"] for row in one["rows"]], [row["loss"] for row in eight["rows"]], rtol=2e-3)
    np.testing.assert_allclose(one["rows"][0]["loss"], eight["rows"][0]["loss"], rtol=1e-5)
