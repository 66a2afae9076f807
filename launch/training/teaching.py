"""The teacher of a run: a finished run, whose network sees the same inputs."""

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from rich.console import Console

from fliqs_jax.distillation import TEACHER_LOGITS
from fliqs_jax.evaluation import make_logits
from fliqs_jax.losses import Batch
from launch import data
from launch.data.contract import Normalization, on_device
from launch.training import finished
from launch.training.experiment import Experiment
from launch.training.settings import ConfigError

# Runs with other seeds set other examples aside, so that means differ a little: in units of the deviation.
_SAME_NORMALIZATION = 0.05


def read_teacher(experiment: Experiment, dataset: data.Dataset, console: Console) -> Callable[[Batch], Batch]:
    """Makes `batch → batch`, which adds the logits of the teacher; the identity if there is no teacher.

    Raises:
      ConfigError: the teacher is no finished run with a network, or knows other data, inputs or classes.
      DamagedFileError: its network is not as it was written.
    """
    name = experiment.config.distillation.teacher
    if not name:
        return lambda batch: batch
    directory = pathlib.Path(name)
    teacher = finished.read_experiment(directory)
    network = finished.read_network(directory, teacher)
    _check_alike(f"distillation.teacher={name!r}", network.about["data"], finished.about_data(experiment, dataset))
    buckets = [run.config.data.get("buckets") for run in (teacher, experiment)]
    if buckets[0] != buckets[1]:
        raise ConfigError(f"distillation.teacher={name!r} has data.buckets={buckets[0]}, here they are {buckets[1]}")
    console.print(f"teacher: {finished.told(directory)}", soft_wrap=True)
    variables = finished.variables_of(network, teacher)
    logits_of, ready = make_logits(teacher.search), on_device(dataset)
    logits = jax.jit(lambda variables, batch: logits_of(variables, ready(batch)["input"]))
    return lambda batch: batch | {TEACHER_LOGITS: logits(variables, batch)}


def _check_alike(teacher: str, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    """Raises ConfigError unless a teacher saw what the student sees, both described as in the file of a network."""
    for key, told in {
        "name": "was trained on data.name",
        "input_shape": "knows inputs of shape",
        "input_type": "knows inputs of type",
        "classes": "knows classes",
    }.items():
        if theirs[key] != ours[key]:
            raise ConfigError(f"{teacher} {told} {theirs[key]!r}, here it is {ours[key]!r}")
    if not _same_normalization(theirs["normalization"], ours["normalization"]):
        raise ConfigError(
            f"{teacher} knows inputs normalised otherwise: {_told(theirs['normalization'])}, here "
            f"{_told(ours['normalization'])}"
        )


def _same_normalization(theirs: Normalization | None, ours: Normalization | None) -> bool:
    if theirs is None or ours is None:
        return theirs is ours
    if any(theirs[key] != ours[key] for key in ("formula", "x")) or len(theirs["mean"]) != len(ours["mean"]):
        return False
    deviation = np.asarray(ours["deviation"])
    differences = [np.abs(np.asarray(theirs[key]) - np.asarray(ours[key])) for key in ("mean", "deviation")]
    return all((difference <= _SAME_NORMALIZATION * deviation).all() for difference in differences)


def _told(normalization: Normalization | None) -> str:
    if normalization is None:
        return "in a way that the data do not tell"
    mean, deviation = (", ".join(f"{x:.3g}" for x in normalization[key][:3]) for key in ("mean", "deviation"))
    return f"by mean {mean} and deviation {deviation}" + (" …" if len(normalization["mean"]) > 3 else "")
