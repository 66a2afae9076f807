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
import jax.numpy as jnp
import numpy as np

from aqt_like.interception import profile_inputs
from aqt_like.layer_calls import Model, Product, computing_method, is_layer_call, layer_input, split_repetition
from aqt_like.quantized_layer import einsum_equation
from hwcost import measured_tables, workload
from hwcost.measured_tables import Bits, Entry, Lut
from hwcost.workload import LayerSpec, Workload
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


def network(name: str, model: Model, input_shape: Sequence[int], *, dtype: Any = np.float32, **mode: Any) -> Network:
    """Makes the programs of a network and of its layers, for random inputs of shape [B, …].

    The program of a layer is one run of the layer itself, with a bias, and a ReLU. Its input is never negative if that
    holds in the network.

    Raises:
      ValueError: `workload.trace` refuses the model, or a run of a layer does not see the batch.
    """
    layers = workload.trace(model, input_shape[1:], dtype=dtype, **mode)
    keys = jax.random.split(jax.random.key(0))
    example = jax.ShapeDtypeStruct(tuple(input_shape), dtype)

    def init(key: jax.Array, x: jax.Array) -> Any:
        return model.init(key, x, **mode)

    def apply(variables: Any, x: jax.Array) -> Any:
        return model.apply(variables, x, **mode)

    calls = _layer_calls(apply, jax.eval_shape(init, keys[1], example), example)
    runs = {}
    for layer in layers:
        runs.setdefault(
            measured_tables.layer_key(layer),
            (layer, *_one_run(layer, calls[split_repetition(layer.path)[0]], batch=input_shape[0])),
        )
    x = jax.random.normal(keys[0], input_shape).astype(dtype)
    variables = jax.jit(init)(keys[1], x)
    profiles = profile_inputs(model, variables, x, **mode)
    parts = {
        key: _layer_program(call, shape, positive=bool(profiles[layer.path].never_negative))
        for key, (layer, call, shape) in runs.items()
    }
    shape = "x".join(map(str, input_shape))
    return Network(f"{NETWORK}{name} {shape}", layers, Program(apply, variables, x), parts)


class _LayerCall(NamedTuple):
    """A call of a layer in a network. In loops and under `vmap`, its shapes are those of a single run.

    Attributes:
      layer: the layer, without variables.
      method: the method that computes it.
      x: shape and type of the input.
      more: further arguments: the equation of an einsum that is called with one.
      output_values: number of output values.
    """

    layer: nn.Module
    method: Callable[..., jax.Array]
    x: jax.ShapeDtypeStruct
    more: tuple[str, ...]
    output_values: int


def _layer_calls(apply: Callable, variables: Any, x: jax.ShapeDtypeStruct) -> dict[str, list[_LayerCall]]:
    """The calls of each layer, by path without repetition, in order."""
    calls: dict[str, list[_LayerCall]] = defaultdict(list)

    def record(call: Any, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        y = call(*args, **kwargs)
        layer = context.module
        if is_layer_call(context) and not isinstance(layer, Product):
            inputs, equation = layer_input(layer, args, kwargs), einsum_equation(layer, args, kwargs)
            calls["/".join(layer.path)].append(
                _LayerCall(
                    layer.clone(parent=None, name=None),
                    computing_method(context),
                    jax.ShapeDtypeStruct(inputs.shape, inputs.dtype),
                    () if equation is None else (equation,),
                    y.size,
                )
            )
        return y

    with nn.intercept_methods(record):
        jax.eval_shape(apply, variables, x)
    return calls


def _one_run(layer: LayerSpec, calls: Sequence[_LayerCall], *, batch: int) -> tuple[_LayerCall, tuple[int, ...]]:
    """The call whose sizes a layer has, and the shape of its input in one run for a batch of examples.

    Raises:
      ValueError: the model maps the layer over the batch, so that no call sees it.
    """
    images = (*layer.input_size, layer.in_channels) if layer.kernel else ()
    for call in calls:
        if images and call.x.shape[-len(images) :] == images:
            return call, (batch, *images)  # One run has no further axes, such as frames.
        if not images and call.output_values == batch * layer.output_values:
            return call, call.x.shape
    raise ValueError(
        f"{layer.path}: cannot be timed for a batch of {batch}: the model maps it over examples, one in each run; "
        "expected batch 1"
    )


def _layer_program(call: _LayerCall, shape: tuple[int, ...], *, positive: bool) -> Program:
    """The program of a layer for inputs of this shape."""
    layer = call.layer.clone(use_bias=True)
    draw = np.random.default_rng(0)  # NumPy's, which compiles nothing per shape.

    def values(of: jax.ShapeDtypeStruct, scale: float = 1.0) -> np.ndarray:
        return scale * draw.standard_normal(of.shape, np.float32)

    def function(weights: Any, x: jax.Array) -> jax.Array:
        y: Any = layer.apply({"params": weights}, x, *call.more, method=call.method)
        return nn.relu(y)

    inputs = jax.ShapeDtypeStruct(shape, call.x.dtype)
    x = abs(values(inputs)) if positive else values(inputs)
    init = partial(layer.init, method=call.method)
    shapes = jax.eval_shape(lambda x: init(jax.random.key(0), x, *call.more), inputs)["params"]
    # Small weights, so that the ranges of the outputs are as usual for a quantiser.
    scales = {"kernel": 0.05, "bias": 1.0}
    weights = {
        name: jax.tree.map(lambda of, scale=scales[name]: jnp.asarray(values(of, scale), of.dtype), shapes[name])
        for name in shapes
    }
    return Program(function, weights, jnp.asarray(x, inputs.dtype))


class Samples:
    """Samples, in seconds, of all settings on one device at one batch size, stored in a journal."""

    def __init__(
        self, path: pathlib.Path, *, device: str, batch: int, say: Callable[[str], None] | None = None
    ) -> None:
        """Opens or creates the file; see `Journal` for `say`.

        Raises:
          JournalError: the file has samples of another device or batch size, or a damaged line.
        """
        self._journal = Journal(path, {"device": device, "batch": batch}, option="--out", say=say)
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
            settings[Setting(key, (width, width))] = partial(_prepare_layer, runtime, key, part, width)
        settings[Setting(net.key, (width, width))] = partial(runtime.prepare_network, net.whole, width)
    return settings


def _prepare_layer(runtime: Runtime, key: str, part: Program, width: int) -> Run:
    try:
        return runtime.prepare_layer(part, width)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error


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
        predicted = sum(
            layer.runs * samples.entry(Setting(measured_tables.layer_key(layer), bits)).value for layer in net.layers
        )
        checks.append(Check(width, predicted, samples.entry(Setting(net.key, bits)).value))
    return checks
