"""What a trial runs with: the compiled functions of its experiment, and its batches."""

import dataclasses
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
from rich.console import Console

from fliqs_jax.evaluation import make_profile_clip_multiples
from fliqs_jax.losses import Batch
from fliqs_jax.search import SearchState, make_search_step
from launch import data
from launch.data.contract import first_batch, on_device
from launch.data.example_checks import check_batch, check_evaluation_batch, check_present
from launch.training import finished, progress
from launch.training.experiment import Experiment, Trial
from launch.training.mesh import compile_step, data_mesh, place_batch, replicated, split_batch
from launch.training.run_directory import (
    Inputs,
)


@dataclasses.dataclass(frozen=True)
class Compiled:
    """Compiled functions of an experiment, shared by all of its trials.

    Attributes:
      mesh: devices.
      teach: adds the logits of the teacher to a training batch; identity if the experiment has no teacher.
      initial: see `finished.make_initial_state`.
      step: search step, compiled ahead of time.
      networks: freezes, recalibrates and evaluates.
      profile: see `make_profile_clip_multiples`; None if clip multiples are not profiled on a batch.
      step_compilations: returns the number of compilations of the search step so far.
      seconds: compile time of the search step.
    """

    mesh: jax.sharding.Mesh
    teach: Callable[[Batch], Batch]
    initial: Callable[[Trial], SearchState]
    step: jax.stages.Compiled
    networks: finished.Networks
    profile: Callable | None
    step_compilations: Callable[[], int]
    seconds: float


def compile_functions(experiment: Experiment, dataset: data.Dataset, teach: Callable[[Batch], Batch]) -> Compiled:
    """Compiles the search step for all devices and for batches of `dataset` with what `teaching.read_teacher` adds.

    Raises:
      DataError: a first batch of a split is not as its source says.
      ValueError: loss or quality do not take the batches; a network cannot be frozen.
    """
    mesh = data_mesh()
    whole = replicated(mesh)
    search, config, criterion = experiment.search, experiment.config, experiment.clip_criterion
    search_step, ready = make_search_step(search), on_device(dataset)
    traces: list[None] = []

    def counted_step(state: SearchState, train_batch: Batch, valid_batch: Batch) -> Any:
        traces.append(None)  # A function is traced once per compilation.
        return search_step(state, ready(train_batch), ready(valid_batch))

    def profile(state: SearchState, train_batch: Batch) -> SearchState:
        assert criterion is not None
        return make_profile_clip_multiples(search, criterion)(state, ready(train_batch))

    given = getattr(dataset, "example", experiment.source.example)

    def example(split: str, size: int, *, augmented: bool) -> Batch:
        batch = first_batch(dataset, split, batch_size=size, augmented=augmented) or {}
        check_batch(split, batch, given, experiment.task.labels)
        return jax.tree.map(lambda values: jax.ShapeDtypeStruct(values.shape, values.dtype), batch)

    train_example = jax.eval_shape(teach, example("train", config.batch_size, augmented=True))
    valid_example = example("valid", config.valid_batch_size, augmented=False)
    evaluated = first_batch(dataset, "test", batch_size=config.valid_batch_size)
    check_evaluation_batch("test", evaluated, given, experiment.task.labels)
    experiment.task.check(jax.eval_shape(ready, train_example))
    networks = finished.Networks(experiment, dataset)
    networks.check()
    start = time.perf_counter()
    initial = finished.make_initial_state(experiment)
    state = jax.eval_shape(lambda: initial(experiment.trials[0]))
    step = compile_step(counted_step, mesh, state, train_example, valid_example)
    return Compiled(
        mesh=mesh,
        teach=teach,
        initial=initial,
        step=step,
        networks=networks,
        profile=criterion and jax.jit(profile, donate_argnums=0, out_shardings=whole),
        step_compilations=lambda: len(traces),
        seconds=time.perf_counter() - start,
    )


def open_data(experiment: Experiment) -> data.Dataset:
    """Opens the data set of an experiment.

    Raises:
      DataError: it cannot be read, or a split lacks labels without which the quality means nothing.
    """
    config = experiment.config
    dataset = experiment.source.open(valid_examples=config.data.valid_examples, seed=config.seed)
    check_present(dataset, config.valid_batch_size, experiment.task.labels)
    return dataset


@dataclasses.dataclass(frozen=True)
class TrialRun:
    """A trial with everything that is needed to run it."""

    experiment: Experiment
    trial: Trial
    compiled: Compiled
    dataset: data.Dataset
    directory: pathlib.Path
    inputs: Inputs
    console: Console

    def say(self, text: str) -> None:
        """Prints a message with the name of this trial."""
        progress.plainly(self.console)(f"{self.trial.name}: {text}")

    def batches(self, split: str, batch_size: int, *, first_step: int, augmented: bool = False) -> Iterator[Batch]:
        """Endless batches of `"train"` or `"valid"`, split over the devices."""
        stream = self.dataset.train_batches(split, batch_size=batch_size, first_step=first_step, augmented=augmented)
        return (place_batch(batch, split_batch(self.compiled.mesh)) for batch in stream)

    def taught_batches(self, first_step: int) -> Iterator[Batch]:
        """Endless training batches, with the logits of the teacher if there is one."""
        stream = self.batches("train", self.trial.config.batch_size, first_step=first_step, augmented=True)
        return (self.compiled.teach(batch) for batch in stream)
