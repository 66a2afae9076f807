"""Timing of single layers on this machine, and of the whole network to validate the sum over layers.

Every sample is stored at once as a JSON line, so an interrupted measurement can be resumed. The lookup table
(hwcost/measured_tables.py) contains medians and interquartile ranges.
"""

import datetime
import pathlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from hwcost import measured_tables, workload
from hwcost.measured_tables import Bits, Entry, Lut
from hwcost.workload import Workload
from launch.journal import Journal
from launch.runtimes.engines import COPIES, Program, Run, Runtime

SHORTEST_SAMPLE_SECONDS = 5e-3
NETWORK = "network "  # prefix of the keys of whole networks


class Setting(NamedTuple):
    """Timed setting: key of a layer or network, and its (weight, activation) bits."""

    key: str
    bits: Bits


class Network(NamedTuple):
    """A network to time, with its initial weights; their values do not influence the time.

    Attributes:
      key: key of the samples of the whole network.
      layers: workload of the network.
      whole: program of the whole network.
      parts: programs of its distinct layers, by key (`measured_tables.layer_key`).
    """

    key: str
    layers: Workload
    whole: Program
    parts: dict[str, Program]


def network(
    name: str, model: nn.Module, input_shape: Sequence[int], *, dtype: Any = np.float32, **mode: Any
) -> Network:
    """Makes the programs of a network and of its layers, for random inputs of shape [B, …].

    The program of a layer has the geometry of the layer (padding, dilation), a bias and a ReLU. Its input is never
    negative if that holds in the network.

    Raises:
      ValueError: `workload.trace` refuses the model.
    """
    layers = workload.trace(model, input_shape[1:], dtype=dtype, **mode)
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], input_shape).astype(dtype)
    variables = jax.jit(lambda key: model.init(key, x, **mode))(keys[1])

    def apply(variables: Any, x: jax.Array) -> Any:
        return model.apply(variables, x, **mode)

    closed = jax.make_jaxpr(apply)(variables, x)
    equations = dict(
        reversed(list(workload.contractions(closed.jaxpr)))
    )  # reversed: the first call of a layer that runs several times
    positive = _never_negative(apply, variables, x)
    parts = {}
    for layer in layers:
        program = _layer_program(equations[layer.path], keys[2], positive=layer.path in positive)
        parts.setdefault(measured_tables.layer_key(layer), program)
    shape = "x".join(map(str, input_shape))
    return Network(f"{NETWORK}{name} {shape}", layers, Program(apply, variables, x), parts)


def _never_negative(apply: Callable, variables: Any, x: jax.Array) -> set[str]:
    """Paths of the layers whose input has no negative value, as after a ReLU."""

    def run(variables: Any, x: jax.Array) -> dict[str, jax.Array]:
        lowest: dict[str, jax.Array] = {}

        def record_minimum(call: Any, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
            if context.method_name == "__call__" and args and isinstance(args[0], jax.Array):
                lowest.setdefault("/".join(context.module.path), args[0].min())
            return call(*args, **kwargs)

        with nn.intercept_methods(record_minimum):
            apply(variables, x)
        return lowest

    return {path for path, lowest in jax.jit(run)(variables, x).items() if lowest >= 0}


def _layer_program(equation: Any, key: jax.Array, *, positive: bool) -> Program:
    """Program of one convolution or dot product of a network."""
    inputs, kernel = (variable.aval for variable in equation.invars)
    output = equation.outvars[0].aval
    keys = jax.random.split(key, 3)
    x = jax.random.normal(keys[0], inputs.shape, inputs.dtype)
    # Small weights, so that the ranges of the outputs are as usual for a quantiser.
    weights = 0.05 * jax.random.normal(keys[1], kernel.shape, kernel.dtype)
    bias = jax.random.normal(keys[2], output.shape[-1:], output.dtype)

    def function(weights: Any, x: jax.Array) -> jax.Array:
        kernel, bias = weights
        return nn.relu(equation.primitive.bind(x, kernel, **equation.params) + bias)

    return Program(function, (weights, bias), abs(x) if positive else x)


class Samples:
    """Samples, in seconds, of all settings on one device at one batch size, stored in a journal."""

    def __init__(self, path: pathlib.Path, *, device: str, batch: int) -> None:
        """Opens or creates the file.

        Raises:
          JournalError: the file has samples of another device or batch size, or a damaged line.
        """
        self._journal = Journal(path, {"device": device, "batch": batch}, option="--out")
        self.seconds: dict[Setting, list[float]] = defaultdict(list)
        for entry in self._journal.entries:
            self.seconds[Setting(entry["key"], tuple(entry["bits"]))].append(float(entry["seconds"]))

    def add(self, setting: Setting, seconds: float) -> None:
        """Adds a sample."""
        self.seconds[setting].append(seconds)
        self._journal.append({"key": setting.key, "bits": setting.bits, "seconds": seconds})

    def close(self) -> None:
        """Closes the file."""
        self._journal.close()

    def entry(self, setting: Setting) -> Entry:
        """Median, number of samples and interquartile range, in milliseconds.

        Raises:
          KeyError: the setting has no samples.
        """
        if setting not in self.seconds:
            raise KeyError(setting)
        low, median, high = np.quantile(self.seconds[setting], (0.25, 0.5, 0.75)) * 1e3
        return Entry(float(median), len(self.seconds[setting]), float(high - low))


def timing_settings(net: Network, runtime: Runtime) -> dict[Setting, Callable[[], Run]]:
    """All settings, each layer and the whole network at each width, with functions that prepare their runs."""
    settings: dict[Setting, Callable[[], Run]] = {}
    for width in runtime.widths:
        for key, part in net.parts.items():
            settings[Setting(key, (width, width))] = partial(runtime.prepare_layer, part, width)
        settings[Setting(net.key, (width, width))] = partial(runtime.prepare_network, net.whole, width)
    return settings


def take(
    settings: dict[Setting, Callable[[], Run]],
    samples: Samples,
    *,
    repetitions: int,
    progress: Callable[[Iterable, str], Iterable] = lambda items, _: items,
) -> None:
    """Measures until every setting has `repetitions` samples; settings are interleaved, so noise affects all alike.

    Args:
      settings: settings, with functions that prepare their runs.
      samples: existing samples count, new ones are added.
      repetitions: samples per setting; a sample is the mean of several runs, which together take at least 5 ms.
      progress: `(items, label) → items`, shows progress.
    """
    missing = {s: make for s, make in settings.items() if len(samples.seconds.get(s, ())) < repetitions}
    ready = {setting: make() for setting, make in progress(missing.items(), "preparing")}
    repeats = {setting: _warm_up(run) for setting, run in ready.items()}
    for _ in progress(range(repetitions), "measuring"):
        for setting, run in ready.items():
            if len(samples.seconds.get(setting, ())) < repetitions:
                samples.add(setting, _seconds(run, repeats[setting]))


def _warm_up(run: Run) -> int:
    """Warms up caches and clocks; returns the number of runs per sample."""
    for _ in range(2 * COPIES):
        run()
    return max(COPIES, round(SHORTEST_SAMPLE_SECONDS / _seconds(run, COPIES)))


def _seconds(run: Run, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - start) / repeats


def table(samples: Samples, *, device: str, batch: int) -> Lut:
    """Lookup table of the layers in milliseconds, without the whole network."""
    entries = {tuple(s): samples.entry(s) for s in samples.seconds if not s.key.startswith(NETWORK)}
    return Lut(device, "latency", "ms", entries, batch=batch, date=datetime.date.today().isoformat())


class Check(NamedTuple):
    """Time of a whole network at a width, in milliseconds: sum over its layers, and measurement."""

    width: int
    predicted: float
    measured: float


def check(net: Network, samples: Samples, widths: Iterable[int]) -> list[Check]:
    """Compares the sum over layers with the measured whole network at each width."""
    checks = []
    for width in widths:
        bits = (width, width)
        predicted = sum(samples.entry(Setting(measured_tables.layer_key(layer), bits)).value for layer in net.layers)
        checks.append(Check(width, predicted, samples.entry(Setting(net.key, bits)).value))
    return checks
