import json

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from hwcost import measured_tables
from launch.journal import JournalError
from launch.runtimes import layer_timing
from launch.runtimes.engines import Runtime
from launch.runtimes.layer_timing import Samples, Setting


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
    kernel, bias = first.weights
    spread = np.asarray(first.function((kernel, 0 * bias + 10), impulse))[0, :, :, 0]
    assert set(np.argwhere(spread != 10).reshape(-1).tolist()) == {2, 4, 6}  # dilated, as in the network


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
