import dataclasses
import json
import math

import numpy as np
import pytest

from aqt_like.formats import format_space, parse_format
from fliqs_jax import models
from hwcost import measured_tables, pricing, workload
from hwcost.format_plan import format_plan
from tests import unusual_networks

LAYERS = workload.trace(models.create("cifar_resnet", classes=10), (32, 32, 3), train=False)


def example():
    entries = {}
    for layer in LAYERS:
        for bits in (4, 8, 16):
            entries[measured_tables.layer_key(layer), (bits, bits)] = measured_tables.Entry(
                bits * layer.macs / 1e6, 15, 0.25
            )
    entries[measured_tables.layer_key(LAYERS[0]), (8, 4)] = measured_tables.Entry(1.0)
    return measured_tables.Lut("a board", "latency", "ms", entries, batch=1, date="2026-11-22")


@pytest.mark.parametrize("suffix", [".json", ".csv"])
def test_what_is_written_is_read(tmp_path, suffix):
    table = example()
    measured_tables.write(tmp_path / f"t{suffix}", table)
    found = measured_tables.read(tmp_path / f"t{suffix}")
    assert dataclasses.replace(found, entries={}) == dataclasses.replace(table, entries={})
    assert list(found.entries) == list(table.entries)
    for key, entry in table.entries.items():
        ours = found.entries[key]
        assert (ours.value, ours.repetitions) == (entry.value, entry.repetitions)
        assert ours.spread == entry.spread or (math.isnan(ours.spread) and math.isnan(entry.spread))
    assert [path.name for path in tmp_path.iterdir()] == [f"t{suffix}"]


def test_layers_of_one_shape_share_a_line():
    keys = [measured_tables.layer_key(layer) for layer in LAYERS]
    assert keys[0] == "conv in=3 out=16 size=32x32->32x32 kernel=3x3 stride=1x1 groups=1"
    assert keys[-1] == "dense in=64 out=10 size=1->1"
    assert 3 < len(set(keys)) < len(keys)


def test_a_table_is_a_cost():
    model = example().cost_model()
    plan = format_plan(LAYERS, format_space("int4,int5,int8,e4m3,bf16"))
    table = model.table(plan)
    macs = sum(layer.macs for layer in LAYERS) / 1e6
    for name, bits in {"int4": 4, "int5": 8, "int8": 8, "e4m3": 16, "bf16": 16}.items():
        # No credit for a width that the table lacks, nor for small floats on integer units.
        assert pricing.price_exactly(table, plan.uniform_genome(name)) == pytest.approx(bits * macs)
    assert model.unit == "ms"
    narrow = dataclasses.replace(example(), entries={k: e for k, e in example().entries.items() if k[1][0] < 16})
    for name in ("e4m3", "bf16"):  # never at the price of an integer
        with pytest.raises(measured_tables.LutError, match="has no W16A16"):
            narrow.cost_model().layer_costs(LAYERS[1], [parse_format(name)])


def test_what_is_missing_is_named_with_what_is_near():
    table = example()
    key = measured_tables.layer_key(LAYERS[0])
    with pytest.raises(
        measured_tables.LutError, match=r"a board: 'conv in=3 .*' has no W6A6, but W16A16, W4A4, W8A4, W8A8"
    ):
        table.value(key, (6, 6))
    with pytest.raises(measured_tables.LutError, match=r"no setting 'conv in=5 .*'; nearest are 'conv in=3 out=16 "):
        table.value(key.replace("in=3", "in=5"), (8, 8))
    other = dataclasses.replace(LAYERS[1], path="block/new", out_channels=17)
    with pytest.raises(measured_tables.LutError, match=r"block/new: a board: no setting 'conv in=16 out=17"):
        table.cost_model().layer_costs(other, [parse_format("int8")])


def entry(**changes):
    row = {"key": "k", "weight_bits": 8, "activation_bits": 8, "value": 1.0} | changes
    return {name: value for name, value in row.items() if value is not None}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("nonsense", "cannot read the table .*t.json"),
        ({"device": "d", "metric": "m", "unit": "ms"}, "no field 'entries': expected device, metric, unit"),
        ({"device": "d", "metric": "m", "unit": "ms", "entries": []}, "t.json has no entries"),
        ({"device": "d", "metric": "m", "unit": "ms", "entries": [entry(value=None)]}, "no field 'value'"),
        (
            {"device": "d", "metric": "m", "unit": "ms", "entries": [entry(value=-1)]},
            "'k' costs -1.0",
        ),
        ({"device": "d", "metric": "m", "unit": "ms", "entries": [entry(), entry()]}, "'k' at W8A8 is there twice"),
        ({"device": "d", "metric": "m", "unit": "ms", "entries": [entry(value="fast")]}, "could not convert .*'fast'"),
    ],
)
def test_tables_that_cannot_be_are_refused(tmp_path, document, message):
    path = tmp_path / "t.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    with pytest.raises(measured_tables.LutError, match=message):
        measured_tables.read(path)


def test_devices_are_not_mixed(tmp_path):
    path = tmp_path / "t.csv"
    lines = ["device,metric,unit,key,weight_bits,activation_bits,value", "a,m,ms,k,8,8,1", "b,m,ms,k,4,4,1"]
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(measured_tables.LutError, match="mixes 2 devices, metrics or units"):
        measured_tables.read(path)
    with pytest.raises(measured_tables.LutError, match=r"cannot read the table .*nowhere.csv"):
        measured_tables.read(tmp_path / "nowhere.csv")


def test_apqs_form(tmp_path):
    path = tmp_path / "apq.json"
    path.write_text(json.dumps({"(64, 32, 8, 3, 2, 1, 1)-W4A6": {"latency": 0.5, "energy": 2}, "tail": {"latency": 3}}))
    found = measured_tables.read_apq(path, "latency")
    assert found.entries["conv in=64 out=32 size=8x8->4x4 kernel=3x3 stride=2x2 groups=1", (4, 6)].value == 0.5
    assert found.entries["conv in=320 out=1280 size=7x7->7x7 kernel=1x1 stride=1x1 groups=1", (8, 8)].value == 3
    with pytest.raises(measured_tables.LutError, match="as a table of APQ's: 'energy'"):
        measured_tables.read_apq(path, "energy")
    with pytest.raises(measured_tables.LutError, match="metric 'power': APQ's tables have latency and energy"):
        measured_tables.read_apq(path, "power")
    path.write_text('{"(64, 32)-W4A6": {"latency": 1}}')
    with pytest.raises(measured_tables.LutError, match=r"key '\(64, 32\)-W4A6': expected \(in, out, size"):
        measured_tables.read_apq(path, "latency")


def test_haqs_form(tmp_path):
    path = tmp_path / "haq.npy"
    rows = {measured_tables.layer_key(layer): i + 1 for i, layer in enumerate(LAYERS)}
    values = np.asarray([rows[measured_tables.layer_key(layer)] for layer in LAYERS])[:, None, None] * np.outer(
        range(1, 9), range(1, 9)
    )
    np.save(path, values)
    found = measured_tables.read_haq(path, LAYERS)
    assert found.value(measured_tables.layer_key(LAYERS[3]), (2, 5)) == rows[measured_tables.layer_key(LAYERS[3])] * 10
    with pytest.raises(measured_tables.LutError, match=r"has shape \(22, 8, 8\): expected \[21, bits, bits\]"):
        measured_tables.read_haq(path, LAYERS[:-1])
    np.save(path, values + np.arange(len(LAYERS))[:, None, None])
    with pytest.raises(measured_tables.LutError, match=r"layers of one shape .* cost differently"):
        measured_tables.read_haq(path, LAYERS)
    np.save(path, np.asarray([{"code": 1}], object), allow_pickle=True)
    with pytest.raises(measured_tables.LutError, match=r"cannot read .* as a NumPy array"):
        measured_tables.read_haq(path, LAYERS)


def test_missing_layers_are_estimated_only_where_asked():
    table = example()
    known = LAYERS[1]  # 3×3, 16 to 16 channels, 32×32
    wider = dataclasses.replace(known, path="wider", out_channels=20)
    with pytest.raises(measured_tables.LutError, match="wider: a board: no setting"):
        table.cost_model().layer_costs(wider, [parse_format("int8")])
    model = table.cost_model(interpolated=True)
    assert table.most_similar(wider) == (measured_tables.layer_key(known), 20 / 16)
    (found,) = model.layer_costs(wider, [parse_format("int8")])
    assert found == pytest.approx(table.value(measured_tables.layer_key(known), (8, 8)) * 20 / 16)
    assert model.estimates(wider) and not model.estimates(known)
    assert model.layer_costs(known, [parse_format("int8")])[0] == table.value(measured_tables.layer_key(known), (8, 8))
    depthwise = dataclasses.replace(known, path="depthwise", groups=16)
    with pytest.raises(
        measured_tables.LutError, match=r"nothing to interpolate 'conv .* groups=16' from: no layer of its kind"
    ):
        model.layer_costs(depthwise, [parse_format("int8")])


def test_keys_tell_what_computes_otherwise_apart():
    kinds = {layer.path: layer for layer in workload.trace(unusual_networks.kinds(), (8, 8, 32))}
    (experts,) = workload.trace(unusual_networks.expert_einsum(), (4, 6, 8))
    shape = "in=32 out=32 size=8x8->{} kernel=3x3 stride={} groups=1"
    keys = {path: measured_tables.layer_key(layer) for path, layer in kinds.items()}
    assert keys == {
        "plain": "conv " + shape.format("8x8", "1x1"),
        "dilated": "conv " + shape.format("8x8", "1x1") + " dilation=4x4",
        "inserted": "conv " + shape.format("16x16", "1x1") + " input_dilation=2x2",
        "transposed": "conv_transpose " + shape.format("16x16", "2x2"),
        "local": "conv_local " + shape.format("8x8", "1x1"),
    }
    assert measured_tables.layer_key(experts) == "dense in=32 out=64 size=6->6 groups=4"
    # None is estimated from another kind, but from its own.
    layers = (*kinds.values(), experts, dataclasses.replace(experts, groups=1))
    for layer in layers:
        others = [measured_tables.layer_key(other) for other in layers if other != layer]
        table = measured_tables.Lut("b", "m", "ms", {(key, (8, 8)): measured_tables.Entry(1.0) for key in others})
        with pytest.raises(measured_tables.LutError, match="nothing to interpolate"):
            table.most_similar(layer)
        wider = dataclasses.replace(layer, out_channels=64)
        table.entries[measured_tables.layer_key(layer), (8, 8)] = measured_tables.Entry(1.0)
        assert table.most_similar(wider) == (measured_tables.layer_key(layer), 64 / layer.out_channels)


def test_entries_are_the_cost_of_one_run(tmp_path):
    *steps, head = workload.trace(unusual_networks.recurrent(), (12, 8))
    entries = {(measured_tables.layer_key(layer), (8, 8)): measured_tables.Entry(0.5) for layer in (*steps, head)}
    model = measured_tables.Lut("a board", "latency", "ms", entries).cost_model()
    assert model.uniform((*steps, head), parse_format("int8")) == 0.5 * (12 * len(steps) + 1)
    costs = np.asarray([12.0] * len(steps) + [1.0])[:, None, None] * np.ones((1, 8, 8))
    np.save(tmp_path / "haq.npy", costs)  # HAQ's are those of a layer in the network, with all its runs.
    table = measured_tables.read_haq(tmp_path / "haq.npy", (*steps, head))
    assert table.value(measured_tables.layer_key(steps[0]), (8, 8)) == 1
    assert table.cost_model().uniform((*steps, head), parse_format("int8")) == costs[:, 7, 7].sum()
