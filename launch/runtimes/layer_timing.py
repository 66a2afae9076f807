"""Times the layers of a network on this machine, each alone, and the whole network to see how far to trust the sum.

Every sample is kept as it is taken, one JSON line each, so that a measurement goes on where it stopped; the table
(hwcost/measured_tables.py) holds medians and quartile distances.
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
NETWORK = "network "  # how the keys of whole networks begin


class Setting(NamedTuple):
    """What a sample is of: the key of a layer or network, and the bits that it ran with."""

    key: str
    bits: Bits


class Network(NamedTuple):
    """A network to measure, with weights as it starts with: what they are makes no difference to the time.

    Attributes:
      key: what samples of the whole are called.
      layers: its workload.
      whole: all of it as one program.
      parts: its distinct layers alone, by key (`lut.layer_key`).
    """

    key: str
    layers: Workload
    whole: Program
    parts: dict[str, Program]


def network(
    name: str, model: nn.Module, input_shape: Sequence[int], *, dtype: Any = np.float32, **mode: Any
) -> Network:
    """A network as programs, on random inputs of shape [B, …].

    Each layer runs alone as it stands in the network (same padding, same dilation), with a bias and a rectifier, on an
    input that is negative in places only if it is so in the network.

    Raises:
      ValueError: a model that `workload.trace` refuses.
    """
    layers = workload.trace(model, input_shape[1:], dtype=dtype, **mode)
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], input_shape).astype(dtype)
    variables = jax.jit(lambda key: model.init(key, x, **mode))(keys[1])

    def apply(variables: Any, x: jax.Array) -> Any:
        return model.apply(variables, x, **mode)

    closed = jax.make_jaxpr(apply)(variables, x)
    equations = dict(reversed(list(workload.contractions(closed.jaxpr))))  # a layer's first, if it runs twice
    positive = _never_negative(apply, variables, x)
    parts = {}
    for layer in layers:
        program = _alone(equations[layer.path], keys[2], positive=layer.path in positive)
        parts.setdefault(measured_tables.layer_key(layer), program)
    shape = "x".join(map(str, input_shape))
    return Network(f"{NETWORK}{name} {shape}", layers, Program(apply, variables, x), parts)


def _never_negative(apply: Callable, variables: Any, x: jax.Array) -> set[str]:
    """Paths of the layers whose input has no negative value, as after a rectifier."""

    def run(variables: Any, x: jax.Array) -> dict[str, jax.Array]:
        lowest: dict[str, jax.Array] = {}

        def look(call: Any, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
            if context.method_name == "__call__" and args and isinstance(args[0], jax.Array):
                lowest.setdefault("/".join(context.module.path), args[0].min())
            return call(*args, **kwargs)

        with nn.intercept_methods(look):
            apply(variables, x)
        return lowest

    return {path for path, lowest in jax.jit(run)(variables, x).items() if lowest >= 0}


def _alone(equation: Any, key: jax.Array, *, positive: bool) -> Program:
    """The program of one convolution or dot product of a network."""
    inputs, kernel = (variable.aval for variable in equation.invars)
    output = equation.outvars[0].aval
    keys = jax.random.split(key, 3)
    x = jax.random.normal(keys[0], inputs.shape, inputs.dtype)
    # Small weights, so that their product with the input's scale says nothing unusual to a quantiser.
    weights = 0.05 * jax.random.normal(keys[1], kernel.shape, kernel.dtype)
    bias = jax.random.normal(keys[2], output.shape[-1:], output.dtype)

    def function(weights: Any, x: jax.Array) -> jax.Array:
        kernel, bias = weights
        return nn.relu(equation.primitive.bind(x, kernel, **equation.params) + bias)

    return Program(function, (weights, bias), abs(x) if positive else x)


class Samples:
    """Seconds of every setting, kept in a journal of a device and a batch size."""

    def __init__(self, path: pathlib.Path, *, device: str, batch: int) -> None:
        """Opens the file, or starts it.

        Raises:
          JournalError: it holds samples of another device or batch size, or is damaged before its last line.
        """
        self._journal = Journal(path, {"device": device, "batch": batch}, option="--out")
        self.seconds: dict[Setting, list[float]] = defaultdict(list)
        for entry in self._journal.entries:
            self.seconds[Setting(entry["key"], tuple(entry["bits"]))].append(float(entry["seconds"]))

    def add(self, setting: Setting, seconds: float) -> None:
        """Keeps a sample."""
        self.seconds[setting].append(seconds)
        self._journal.append({"key": setting.key, "bits": setting.bits, "seconds": seconds})

    def close(self) -> None:
        """Closes the file."""
        self._journal.close()

    def entry(self, setting: Setting) -> Entry:
        """Median and quartile distance in milliseconds.

        Raises:
          KeyError: nothing was measured.
        """
        if setting not in self.seconds:
            raise KeyError(setting)
        low, median, high = np.quantile(self.seconds[setting], (0.25, 0.5, 0.75)) * 1e3
        return Entry(float(median), len(self.seconds[setting]), float(high - low))


def timing_settings(net: Network, runtime: Runtime) -> dict[Setting, Callable[[], Run]]:
    """What there is to measure: each layer and the whole, at each width, with the function that makes it ready."""
    found: dict[Setting, Callable[[], Run]] = {}
    for width in runtime.widths:
        for key, part in net.parts.items():
            found[Setting(key, (width, width))] = partial(runtime.alone, part, width)
        found[Setting(net.key, (width, width))] = partial(runtime.whole, net.whole, width)
    return found


def take(
    wanted: dict[Setting, Callable[[], Run]],
    samples: Samples,
    *,
    repetitions: int,
    progress: Callable[[Iterable, str], Iterable] = lambda items, _: items,
) -> None:
    """Measures until every setting has `repetitions` samples, all in turn, so that a noisy machine disturbs all alike.

    Args:
      wanted: settings and how to make them ready.
      samples: to add to; what they already hold is not measured again.
      repetitions: samples of each; a sample is the mean over runs that together take 5 ms at least.
      progress: wraps what is worked through, with a label, to show how far it is.
    """
    missing = {s: make for s, make in wanted.items() if len(samples.seconds.get(s, ())) < repetitions}
    ready = {setting: make() for setting, make in progress(missing.items(), "preparing")}
    repeats = {setting: _warm_up(run) for setting, run in ready.items()}
    for _ in progress(range(repetitions), "measuring"):
        for setting, run in ready.items():
            if len(samples.seconds.get(setting, ())) < repetitions:
                samples.add(setting, _seconds(run, repeats[setting]))


def _warm_up(run: Run) -> int:
    """Runs until caches and clocks have settled; returns how many runs make a sample."""
    for _ in range(2 * COPIES):
        run()
    return max(COPIES, round(SHORTEST_SAMPLE_SECONDS / _seconds(run, COPIES)))


def _seconds(run: Run, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - start) / repeats


def table(samples: Samples, *, device: str, batch: int) -> Lut:
    """The layers' medians as a table, which a whole network is no part of."""
    entries = {tuple(s): samples.entry(s) for s in samples.seconds if not s.key.startswith(NETWORK)}
    return Lut(device, "latency", "ms", entries, batch=batch, date=datetime.date.today().isoformat())


class Check(NamedTuple):
    """A whole network's time in milliseconds: the sum over its layers, and as measured."""

    width: int
    predicted: float
    measured: float


def check(net: Network, samples: Samples, widths: Iterable[int]) -> list[Check]:
    """How the sum over layers compares with the whole, at each width."""
    found = []
    for width in widths:
        bits = (width, width)
        predicted = sum(samples.entry(Setting(measured_tables.layer_key(layer), bits)).value for layer in net.layers)
        found.append(Check(width, predicted, samples.entry(Setting(net.key, bits)).value))
    return found
