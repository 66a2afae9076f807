"""What a config would do, before it does it: all checks, and estimates of cost, memory and time. Nothing is written."""

import itertools
import math
import statistics
import time

import jax
from ml_collections import ConfigDict
from rich.console import Console

from hwcost import pricing
from launch import data
from launch.training import finished, trial_run
from launch.training.experiment import Experiment
from launch.training.mesh import place_batch, replicated, split_batch
from launch.training.progress import duration
from launch.training.teaching import read_teacher

TIMED_STEPS = 8


def check(experiment: Experiment, console: Console) -> None:
    """Prints what an experiment searches, what it may cost, how long it takes and how much memory it needs.

    The data are read, the search step is compiled, and a few of its steps are run, so that what would fail there fails
    here.
    """
    dataset = trial_run.open_data(experiment)
    teach = read_teacher(experiment, dataset, console)
    compiled = trial_run.compile_functions(experiment, dataset, teach)
    seconds = _seconds_per_step(experiment, compiled, dataset)
    search, plan = experiment.search, experiment.plan
    genomes = sum(math.log10(count) for count in plan.space.option_counts)
    planned = compiled.step.memory_analysis()
    memory = (
        f"about {(planned.argument_size_in_bytes + planned.temp_size_in_bytes) / 1e6:,.0f} MB" if planned else "unknown"
    )
    trials = len(experiment.trials)
    in_turn = f", for the targets {', '.join(f'{t:g}' for t in experiment.config.targets)} in turn"
    rows = {
        "data": f"{experiment.config.data.name}, {experiment.source.train_examples:,} examples, of which "
        f"{experiment.config.data.valid_examples:,} for the reward",
        **({"read": remark} if (remark := getattr(dataset, "remark", "")) else {}),
        "model": " ".join(search.model.remarks()),
        "layers": f"{len(plan.workload)}, {sum(layer.macs for layer in plan.workload):,} MACs, "
        f"{sum(layer.weights for layer in plan.workload):,} weights",
        **({"outside": remark} if (remark := experiment.survey.remark()) else {}),
        "search space": f"{len(plan.space)} decisions, 10^{genomes:.1f} genomes",
        **{f"cost {name}": _cost_range(experiment, i) for i, name in enumerate(experiment.costs)},
        "networks": f"{trials}: {', '.join(trial.name for trial in experiment.trials)}",
        "steps": f"{search.total_steps:,} each{in_turn if search.targets else ''}",
        "memory": f"{memory}, as XLA plans the compiled step",
        **_host_memory(dataset, experiment.config),
        "time": f"about {duration(compiled.seconds + trials * search.total_steps * seconds)}: {compiled.seconds:.0f} s "
        f"of compilation, {1000 * seconds:.1f} ms a step",
    }
    for label, text in rows.items():
        console.print(f"{label:<22}{text}", soft_wrap=True, highlight=False, markup=False)


def _host_memory(dataset: data.Dataset, config: ConfigDict) -> dict[str, str]:
    """What a stream of images takes on the host."""
    if not (bytes_of := getattr(dataset, "host_bytes", None)):
        return {}
    gigabytes = bytes_of(config.batch_size, config.valid_batch_size) / 2**30
    return {"host memory": f"at most about {gigabytes:.1f} GiB for images and the {config.data.workers} workers"}


def _cost_range(experiment: Experiment, number: int) -> str:
    """The target of a budget, and what the genomes of the space cost."""
    budget, model = experiment.search.budgets[number], list(experiment.costs.values())[number]
    lowest, highest = pricing.reachable_interval(budget.table, experiment.plan.space)
    return f"target {budget.target:,.4g} {model.unit}, genomes from {lowest:,.4g} to {highest:,.4g}"


def _seconds_per_step(experiment: Experiment, compiled: trial_run.Compiled, dataset: data.Dataset) -> float:
    """Median time of the search step, with its batches, after a first one that warms up."""
    config, sharding = experiment.config, split_batch(compiled.mesh)
    state = jax.device_put(finished.initial_state(experiment, experiment.trials[0]), replicated(compiled.mesh))
    streams = zip(
        dataset.train_batches("train", batch_size=config.batch_size, first_step=0, augmented=True),
        dataset.train_batches("valid", batch_size=config.valid_batch_size, first_step=0, augmented=False),
        strict=True,
    )
    seconds = []
    start = time.perf_counter()
    for train_batch, valid_batch in itertools.islice(streams, TIMED_STEPS + 1):
        train, valid = place_batch(train_batch, sharding), place_batch(valid_batch, sharding)
        state, metrics = compiled.step(state, compiled.teach(train), valid)
        jax.block_until_ready(metrics)
        now = time.perf_counter()
        seconds.append(now - start)
        start = now
    return statistics.median(seconds[1:])
