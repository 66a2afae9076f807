"""The check of exported files: what each runtime makes of them on test examples, against the network of the run."""

import contextlib
import itertools
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from fliqs_jax.evaluation import make_logits
from fliqs_jax.quality import Quality
from launch import data
from launch.data.contract import on_device
from launch.runtimes import self_check
from launch.runtimes.exported_network import ANY, Subject
from launch.training import finished

MOST_EXAMPLES, ALONE = 10_000, 100


Expected = dict[bool, tuple[self_check.Known, list[data.Batch]]]
"""What the network gives for test examples, and these, by whether they are alone."""


def _known(subject: Subject, dataset: data.Dataset, size: int, most: int) -> tuple[self_check.Known, list[data.Batch]]:
    """Up to `most` test examples in batches, and the outputs of the network as the run evaluates it."""
    stream = itertools.islice(dataset.eval_batches("test", batch_size=size), math.ceil(most / size))
    batches = [jax.device_get(on_device(dataset)(batch)) for batch in stream]
    variables = finished.variables_of(subject.network, subject.experiment)
    logits = jax.jit(make_logits(subject.experiment.search))
    inputs = [batch["input"] for batch in batches]
    expected = [np.asarray(logits(variables, x), np.float32) for x in inputs]
    real = [np.asarray(np.any(batch["label"].reshape(len(batch["label"]), -1) >= 0, axis=1)) for batch in batches]
    taken = [subject.taken(_repeated(x, among)) for x, among in zip(inputs, real, strict=True)]
    return self_check.Known(taken, expected, real), batches


def _repeated(inputs: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Inputs whose padding is replaced by the first of them, which is an example."""
    return np.where(real.reshape(-1, *[1] * (inputs.ndim - 1)), inputs, inputs[:1])


def expected_outputs(subject: Subject, dataset: data.Dataset) -> Expected:
    """What files shall give: of batches, and, if a file takes any number of examples, of some alone.

    Raises:
      ConfigError: files would not take these examples.
    """
    size = subject.experiment.config.valid_batch_size if subject.batch == ANY else int(subject.batch)
    known = {False: _known(subject, dataset, size, MOST_EXAMPLES)}
    if subject.batch == ANY:
        known[True] = _known(subject, dataset, 1, ALONE)
    return known


def one_input(known: Expected) -> np.ndarray:
    """The least that a file takes: a test example, or a batch of the file's size."""
    expected, _ = known.get(True, known[False])
    return expected.inputs[0]


def _quality(quality: Quality, outputs: Sequence[Any], batches: Sequence[data.Batch]) -> float:
    """The quality of the run's kind that outputs have."""
    statistics = [
        jax.device_get(quality.statistics(jnp.asarray(logits), jax.tree.map(jnp.asarray, batch)))
        for logits, batch in zip(outputs, batches, strict=True)
    ]
    return round(float(quality.value(quality.joined(statistics))), 6)


def check(
    subject: Subject, known: Expected, files: Sequence[pathlib.Path], console: Console, *, listed: bool
) -> dict[str, list[dict[str, Any]]]:
    """What each runtime makes of each file, by name of the file.

    Args:
      subject: the network.
      known: its outputs.
      files: what was exported.
      console: where the results are told.
      listed: whether each decision that differs is told.
    """
    quality, found = subject.experiment.search.quality, {}
    for file in files:
        found[file.name] = []
        for name, start in self_check.runtimes_of(file):
            try:
                runner = start(file)
                with contextlib.ExitStack() as ended:
                    ended.callback(runner.close)
                    outputs = {alone: [runner.run(x) for x in each.inputs] for alone, (each, _) in known.items()}
            except Exception as error:  # Runtimes raise whatever they like.
                found[file.name].append({"runtime": name, "error": " ".join(str(error).split())})
                console.print(f"{file.name}: {name} cannot run it: {error}")
                continue
            for alone, (expected, batches) in known.items():
                told = {"runtime": runner.runtime, **self_check.compare(outputs[alone], expected)}
                if not alone:
                    told["quality"] = quality.name
                    told[quality.name] = _quality(quality, outputs[alone], batches)
                    told[f"{quality.name}_of_the_network"] = _quality(quality, expected.expected, batches)
                    told["integer_kernels"] = runner.integer_kernels
                found[file.name].append(told)
                _tell(file.name, told, quality.name, console, listed=listed)
    return found


def _tell(name: str, told: dict[str, Any], quality: str, console: Console, *, listed: bool) -> None:
    """Prints the result of a check."""
    measured = ""
    if quality in told:
        lost = 100 * lost_quality(told, quality)
        measured = f", {quality} {told[quality]:.2%}" + ("" if listed else f" ({0 - lost:+.2f} points)")
    kernels = told.get("integer_kernels")
    integer = f", {kernels[0]} of {kernels[1]} products in integers" if kernels else ""
    differing = f"{len(told['differing'])} of {told['decisions']:,} decisions differ"
    logits = f"logits by {told['largest_difference']:.1e} at most ({told['median_difference']:.1e} median)"
    console.print(f"{name} in {told['runtime']}, batch {told['batch']}: {differing}, {logits}{measured}{integer}")
    for each in told["differing"] if listed else ():
        console.print(
            f"  example {each['example']}: margin {each['margin']:.2g}, logits differ by {each['difference']:.2g}"
        )


def lost_quality(told: dict[str, Any], quality: str) -> float:
    """How much lower the quality of a file is than the network's, of a check of batches."""
    return told[f"{quality}_of_the_network"] - told[quality]
