import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hwcost import measured_tables, workload
from launch.journal import JournalError
from launch.runtimes import layer_timing
from launch.runtimes.engines import Runtime
from launch.runtimes.layer_timing import Samples, Setting
from tests import unusual_networks


class Small(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), kernel_dilation=(2, 2), padding="SAME", name="first")(x))
        x = nn.Conv(4, (3, 3), name="second")(x)
        x = nn.Conv(4, (3, 3), name="third")(x)
        return nn.Dense(2, name="head")(x.mean((1, 2)))


@pytest.fixture(scope="module")
def small():
    return layer_timing.network("small", Small(), (2, 8, 8, 3))


def test_layers_run_alone_as_they_stand_in_the_network(small):
    assert small.key == "network small 2x8x8x3"
    assert [layer.path for layer in small.layers] == ["first", "second", "third", "head"]
    assert len(small.parts) == 3  # second and third are alike
    for layer in small.layers:
        part = small.parts[measured_tables.layer_key(layer)]
        y = part.function(part.weights, part.x)
        assert y.shape == (2, *layer.output_size, layer.out_channels)
        assert float(y.min()) >= 0
    first, second, _, head = (small.parts[measured_tables.layer_key(layer)] for layer in small.layers)
    assert float(first.x.min()) < 0  # the image
    assert float(second.x.min()) >= 0  # behind a rectifier
    assert float(head.x.min()) < 0
    impulse = jnp.zeros_like(first.x).at[:, 4, 4].set(1.0)
    spread = np.asarray(first.function(first.weights | {"bias": jnp.full(4, 10.0)}, impulse))[0, :, :, 0]
    assert set(np.argwhere(spread != 10).reshape(-1).tolist()) == {2, 4, 6}  # dilated, as in the network


def test_one_run_of_every_layer_is_timed_in_loops_too():
    net = layer_timing.network("assembled", unusual_networks.assembled(), (2, 3, 8, 8, 3))
    inputs = {
        "conv in=3 out=32 size=8x8->8x8 kernel=3x3 stride=1x1 groups=1": (8, 8, 3),  # of one frame of a film
        "conv in=32 out=32 size=8x8->8x8 kernel=3x3 stride=1x1 groups=1": (8, 8, 32),
        "conv in=32 out=32 size=8x8->8x8 kernel=3x3 stride=1x1 groups=1 dilation=4x4": (8, 8, 32),
        "conv_local in=32 out=32 size=8x8->8x8 kernel=3x3 stride=1x1 groups=1": (8, 8, 32),
        "conv in=32 out=32 size=8x8->16x16 kernel=3x3 stride=1x1 groups=1 input_dilation=2x2": (8, 8, 32),
        "conv_transpose in=32 out=32 size=8x8->16x16 kernel=3x3 stride=2x2 groups=1": (8, 8, 32),
        "dense in=32 out=8 size=16->16": (16, 32),  # of one expert under vmap
        "dense in=128 out=64 size=1->1 groups=16": (16, 8),
        "dense in=4 out=4 size=16->16": (16, 4),  # of one step of a scan
        "dense in=4 out=10 size=16->16": (16, 4),
    }
    assert {key: part.x.shape for key, part in net.parts.items()} == {key: (2, *size) for key, size in inputs.items()}
    for layer in net.layers:
        part = net.parts[measured_tables.layer_key(layer)]
        assert part.weights["kernel"].size == layer.weights
        assert jax.eval_shape(part.function, part.weights, part.x).size == 2 * layer.output_values
    assert float(net.parts["dense in=32 out=8 size=16->16"].x.min()) >= 0  # behind a rectifier


def test_layers_that_do_not_see_the_batch_are_refused():
    with pytest.raises(ValueError, match=r"experts/up\[0\]: cannot be timed for a batch of 2: the model maps it over"):
        layer_timing.network("experts", unusual_networks.experts(), (2, 5, 8))


def test_whole_networks_are_predicted_from_all_runs_of_their_layers(small, tmp_path):
    layers = workload.trace(unusual_networks.recurrent(), (12, 8))
    net = small._replace(layers=layers)
    samples = Samples(tmp_path / "samples.jsonl", device="mine", batch=1)
    for key in {net.key, *map(measured_tables.layer_key, layers)}:
        samples.add(Setting(key, (8, 8)), 1e-3)
    [check] = layer_timing.check(net, samples, (8,))
    assert check.predicted == pytest.approx(6 * 12 + 1)
    samples.close()


def test_what_a_runtime_cannot_run_is_named_by_its_key(small):
    def refuse(program, width):
        raise ValueError("transposed convolutions are not exported")

    runtime = fake_runtime([])._replace(prepare_layer=refuse)
    settings = layer_timing.timing_settings(small, runtime)
    with pytest.raises(ValueError, match=r"^conv in=3 .* dilation=2x2: transposed convolutions are not exported"):
        next(iter(settings.values()))()


def fake_runtime(log):
    def run(name):
        return lambda: log.append(name)

    return Runtime(
        "a machine, a runtime",
        (32, 8),
        lambda program, width, float_layers=(): run(("whole", width)),
        lambda program, width: run(("alone", program.x.shape, width)),
    )


def test_all_settings_are_sampled_in_turn_and_a_second_call_measures_only_what_is_missing(small, tmp_path):
    log = []
    runtime, path = fake_runtime(log), tmp_path / "samples.jsonl"
    wanted = layer_timing.timing_settings(small, runtime)
    assert len(wanted) == 2 * (3 + 1)
    samples = Samples(path, device=runtime.device, batch=2)
    layer_timing.take(wanted, samples, repetitions=3)
    samples.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0] == {"device": "a machine, a runtime", "batch": 2}
    order = [(line["key"], *line["bits"]) for line in lines[1:]]
    assert order == [(s.key, *s.bits) for s in wanted] * 3

    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]) + '{"key": "cut o')
    log.clear()
    samples = Samples(path, device=runtime.device, batch=2)
    layer_timing.take(wanted, samples, repetitions=3)
    assert set(log) == {("whole", 8)}
    assert {len(seconds) for seconds in samples.seconds.values()} == {3}
    samples.close()
    assert len(path.read_text().splitlines()) == 1 + 3 * len(wanted)


def test_devices_and_batch_sizes_do_not_mix(tmp_path):
    path = tmp_path / "samples.jsonl"
    Samples(path, device="mine", batch=1).close()
    for device, batch in (("yours", 1), ("mine", 2)):
        with pytest.raises(JournalError, match=r"is of .*'mine'.*give another --out"):
            Samples(path, device=device, batch=batch)
    path.write_text(path.read_text() + '{"key": "k"}\n')
    with pytest.raises(JournalError, match="line 2"):
        Samples(path, device="mine", batch=1)


def test_table_and_check_are_medians_of_the_samples(small, tmp_path):
    samples = Samples(tmp_path / "samples.jsonl", device="mine", batch=2)
    keys = [measured_tables.layer_key(layer) for layer in small.layers]
    for key, milliseconds in zip(dict.fromkeys(keys), ([1, 2, 9], [3, 4, 5], [6, 7, 8]), strict=True):
        for value in milliseconds:
            samples.add(Setting(key, (8, 8)), value / 1e3)
    samples.add(Setting(small.key, (8, 8)), 16e-3)
    table = layer_timing.table(samples, device="mine", batch=2)
    assert {entry.value for entry in table.entries.values()} == {2.0, 4.0, 7.0}
    assert table.entries[keys[0], (8, 8)].repetitions == 3
    assert table.entries[keys[0], (8, 8)].spread == pytest.approx(5.5 - 1.5)
    assert (table.batch, table.unit, table.metric) == (2, "ms", "latency")
    [check] = layer_timing.check(small, samples, (8,))
    assert (check.predicted, check.measured) == (pytest.approx(2 + 4 + 4 + 7), pytest.approx(16))
    samples.close()
