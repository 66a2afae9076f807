"""Eight devices give the losses of one: same genome everywhere, each device its part of the batch."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[3]

PROGRAM = """
import itertools, json
import jax
from rich.console import Console
from configs import fliqs_digits
from launch.training import finished, mesh, runs
from launch.training.experiment import prepare_experiment
from tests import tiny_network

config = fliqs_digits.get_config()
config.model, config.epochs, config.clip.source = {"name": tiny_network.NAME}, 1, "profiled"
prepared = prepare_experiment(config)
dataset = runs.open_data(prepared)
compiled = runs.compile_functions(prepared, dataset, lambda batch: batch)
parts, whole = mesh.split_batch(compiled.mesh), mesh.replicated(compiled.mesh)
state = jax.device_put(finished.initial_state(prepared, prepared.trials[0]), whole)
streams = [
    dataset.train_batches(split, batch_size=config.batch_size, first_step=0, augmented=split == "train")
    for split in ("train", "valid")
]
rows = []
for batches in itertools.islice(zip(*streams), 6):
    placed = [mesh.place_batch(batch, parts) for batch in batches]
    state, metrics = compiled.step(state, *placed)
    rows.append({"loss": float(metrics["loss"]), "genome": metrics["genome"].tolist()})
state = compiled.profile(state, placed[0])
state, _ = compiled.step(state, *placed)  # takes what `profile` gives, on any number of devices
kernel = state.params["stem"]["kernel"]
print(json.dumps({
    "rows": rows, "devices": len(jax.devices()), "parts": len(placed[0]["input"].addressable_shards),
    "part": placed[0]["input"].addressable_shards[0].data.shape[0], "replicated": kernel.sharding.is_fully_replicated,
}))
"""


def run_on(devices):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def results():
    return run_on(1), run_on(8)


def test_the_batch_is_split_and_the_state_is_not(results):
    _, eight = results
    assert (eight["devices"], eight["parts"], eight["part"], eight["replicated"]) == (8, 8, 16, True)


def test_genomes_are_the_same_and_losses_agree(results):
    one, eight = results
    assert [row["genome"] for row in one["rows"]] == [row["genome"] for row in eight["rows"]]
    np.testing.assert_allclose([row["loss"] for row in one["rows"]], [row["loss"] for row in eight["rows"]], rtol=2e-3)
    np.testing.assert_allclose(one["rows"][0]["loss"], eight["rows"][0]["loss"], rtol=1e-5)
