"""Who measures networks makes no difference to their accuracies."""

import pathlib
import subprocess
import sys

import pytest

from launch.apq import workers
from launch.training.settings import ConfigError

ROOT = pathlib.Path(__file__).parents[3]

# In a process of its own, since a cluster has to be started before JAX. Weights are not trained: accuracies are low,
# and all different.
MEASURED_TWICE = """
from launch.apq import workers

with workers.started("ray:2") as over_ray:
    import dataclasses
    import jax
    import numpy as np
    import optax
    from apq_jax import architectures, records, shrinking, subnet_accuracy
    from apq_jax.architecture_space import Stage
    from launch.apq.record_task import RecordTask, make_measure

    tiny = dataclasses.replace(architectures.find("digits"), stages=(Stage(8, 1, 1, 2),))
    state = shrinking.init_state(tiny, optax.sgd(0.1), jax.random.key(0))
    rng = np.random.default_rng(0)
    batch = {"input": rng.normal(size=(256, 8, 8, 1)).astype(np.float32), "label": rng.integers(0, 10, 256)}
    weights, batch_stats = jax.device_get((state.params, state.batch_stats))
    task = RecordTask(
        "float",
        tiny,
        weights,
        batch_stats,
        subnet_accuracy.Data([batch], [], [batch]),
        quantizer="gaussian",
        fine_tuning_rate=0,
        label_smoothing=0,
    )
    genomes = list(records.float_genomes(tiny, 5, jax.random.key(0)))
    expected = list(workers.in_process(make_measure, task, genomes))
    assert len(set(expected)) > 1
    assert list(over_ray(make_measure, task, genomes)) == expected
"""


def test_workers_of_ray_measure_what_one_process_does():
    pytest.importorskip("ray", reason="needs requirements-ray.txt")
    subprocess.run([sys.executable, "-c", MEASURED_TWICE], cwd=ROOT, check=True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("spark", "--workers=spark: expected process, ray or ray:N"),
        ("ray:", "--workers=ray:: expected process"),
        ("process:2", "--workers=process:2: expected process"),
        ("ray", r"--workers=ray needs ray: pip install -r requirements-ray.txt"),
    ],
)
def test_unknown_and_missing_workers_are_told(monkeypatch, name, message):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=message), workers.started(name):
        pass
