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


KEY = "dense in=64 out=10 size=1->1"


def entry(**changes):
    row = {"key": KEY, "weight_bits": 8, "activation_bits": 8, "value": 1.0} | changes
    return {name: value for name, value in row.items() if value is not None}


HEAD = {"device": "d", "metric": "m", "unit": "ms"}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("nonsense", "cannot read the table .*t.json"),
        ({"device": "d", "metric": "m", "unit": "ms"}, "no field 'entries': expected device, metric, unit"),
        ({"device": "d", "metric": "m", "unit": "ms", "entries": []}, "t.json has no entries"),
        ({"device": "d", "metric": "m", "unit": "ms", "entries": [entry(value=None)]}, "no field 'value'"),
        (
            {"device": "d", "metric": "m", "unit": "ms", "entries": [entry(value=-1)]},
            f"'{KEY}' costs -1: expected a number from 0",
        ),
        (
            {"device": "d", "metric": "m", "unit": "ms", "entries": [entry(), entry()]},
            f"'{KEY}' at W8A8 is there twice",
        ),
        ([1], "expected an object, got list"),
        ("null", "expected an object, got NoneType"),
        ({}, "no field 'entries'"),
        ("[" * 100_000, "cannot read the table .*t.json"),
        ('{"device": "d", "metric": "m", "unit": "ms", "device": "e", "entries": []}', "'device' is there twice"),
        (HEAD | {"entries": {"a": 1}}, "expected entries=.*, a list of objects"),
        (HEAD | {"entries": [3]}, "expected entries=.*, a list of objects"),
        (HEAD | {"device": 3, "entries": [entry()]}, "device=3: expected a text"),
        (HEAD | {"unit": "", "entries": [entry()]}, "unit='': expected a text"),
        (
            {"device": "d", "metric": "m", "unit": "ms", "batch": 1.5, "entries": [entry()]},
            "batch=1.5: expected a whole",
        ),
    ],
)
def test_tables_that_cannot_be_are_refused(tmp_path, document, message):
    path = tmp_path / "t.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    with pytest.raises(measured_tables.LutError, match=message):
        measured_tables.read(path)


@pytest.mark.parametrize(
    ("field", "values", "expected"),
    [
        ("weight_bits", (4.7, -4, 0, True, None, "8.5", 1000, [8]), "has weight_bits=.*: expected a (whole )?number"),
        ("activation_bits", (math.nan, "eight"), "has activation_bits=.*: expected a number from 1"),
        ("value", (True, None, math.nan, math.inf, -5, "0,5", "1,234.5", "50%"), "costs .*: expected a number from 0"),
        ("value", (0, 0.0, "0", 1e308, 1e-300), "costs .*: expected a number above 0, from 1.2e-38 to 3.4e.38"),
        ("repetitions", (1.5, -1), "has repetitions=.*: expected a"),
        ("spread", (-1.0, math.inf, "wide"), "has spread=.*: expected a number from 0"),
        (
            "key",
            (
                "k",
                "",
                3,
                KEY.replace("in=64", "in=0"),
                KEY + " groups=3",
                KEY + " groups=2x2",
                KEY.replace("64", "9" * 5000),
            ),
            "no layer has the key .*: expected one as 'conv in=64",
        ),
    ],
)
def test_nothing_in_an_entry_is_guessed_or_rounded(tmp_path, field, values, expected):
    for value in values:
        row = entry() | {field: value}
        (tmp_path / "t.json").write_text(json.dumps(HEAD | {"entries": [row]}))
        with pytest.raises(measured_tables.LutError, match=f"t.json: .*{expected}"):
            measured_tables.read(tmp_path / "t.json")


HEADER = "device,metric,unit,key,weight_bits,activation_bits,value"


def test_what_spreadsheets_make_of_a_table_is_understood_or_refused(tmp_path):
    path = tmp_path / "t.csv"
    table = f"{HEADER}\nd,m,ms,{KEY},8,8,4.5\n"
    for text in (table, "\ufeff" + table, table.replace("\n", "\r\n"), table + "\n", table.replace("4.5", "4.50E+00")):
        path.write_bytes(text.encode())
        assert measured_tables.read(path).value(KEY, (8, 8)) == 4.5
    for text, expected in {
        table.replace("4.5", "4,5"): "line 2: 8 fields for 7 columns: expected numbers with a decimal point",
        table.replace("4.5", '"4,5"'): "costs '4,5': expected a number from 0; a fraction has a decimal point",
        table.replace(",8,4.5", ",8"): "line 2: 6 fields for 7 columns",
        table.replace(",", ";"): "expected commas between columns, got 'device;metric",
        table.replace(",", "\t"): "expected commas between columns",
        table.replace("metric", "device"): "two columns have one name",
        HEADER: "has no entries",
        "": "has no entries",
        HEADER.replace(",value", ",cost") + f"\nd,m,ms,{KEY},8,8,4.5": "no field 'value'",
    }.items():
        path.write_text(text)
        with pytest.raises(measured_tables.LutError, match=expected):
            measured_tables.read(path)
    path.write_bytes(table.encode("utf-16"))
    with pytest.raises(measured_tables.LutError, match="cannot read the table"):
        measured_tables.read(path)


@pytest.mark.parametrize("suffix", [".json", ".csv"])
def test_a_table_that_was_changed_is_refused_unless_its_checksum_is_removed(tmp_path, suffix):
    path = tmp_path / f"t{suffix}"
    measured_tables.write(path, example())
    text, key = path.read_text(), measured_tables.layer_key(LAYERS[0])
    for before, after in (("a board", "a horde"), ("ms", "us"), (key, key.replace("in=3", "in=7")), ("0.25", "0.26")):
        path.write_text(text.replace(before, after))
        with pytest.raises(measured_tables.LutError, match=r"is not as it was written: its checksum differs\. If the"):
            measured_tables.read(path)
    digest = "sha256" if suffix == ".json" else measured_tables._digest(example())
    path.write_text(text.replace("a board", "a horde").replace(digest, "" if suffix == ".csv" else "note"))
    assert measured_tables.read(path).device == "a horde"
    whole = dataclasses.replace(example(), entries={(key, (8, 8)): measured_tables.Entry(np.float32(0.1), 3, 1)})
    measured_tables.write(path, whole)
    assert measured_tables.read(path).value(key, (8, 8)) == float(np.float32(0.1))
    with pytest.raises(measured_tables.LutError, match=r"costs 0\.0: expected a number above 0"):
        measured_tables.write(path, dataclasses.replace(example(), entries={(key, (8, 8)): measured_tables.Entry(0)}))
    with pytest.raises(measured_tables.LutError, match="would have no entries"):
        measured_tables.write(path, dataclasses.replace(example(), entries={}))


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
    with pytest.raises(measured_tables.LutError, match="as a table of APQ's: 'tail' has no 'energy'"):
        measured_tables.read_apq(path, "energy")
    with pytest.raises(measured_tables.LutError, match="metric 'power': APQ's tables have latency and energy"):
        measured_tables.read_apq(path, "power")
    path.write_text('{"(64, 32)-W4A6": {"latency": 1}}')
    with pytest.raises(measured_tables.LutError, match=r"key '\(64, 32\)-W4A6': expected \(in, out, size"):
        measured_tables.read_apq(path, "latency")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "has no entries"),
        ("[1]", "expected an object"),
        ('{"tail": 3}', "'tail' has no 'latency'"),
        *(
            (f'{{"tail": {{"latency": {value}}}}}', "'tail' costs .*: expected a number")
            for value in ("-5", "NaN", "0", "true")
        ),
        ('{"tail": {"latency": 1}, "tail": {"latency": 2}}', "'tail' is there twice"),
        (
            '{"tail": {"latency": 1}, "(320, 1280, 7, 1, 1, 0, 1)-W8A8": {"latency": 2}}',
            "layers of one shape .* cost diff",
        ),
        ('{"(64, 64, 8, 3, 0, 1, 1)-W8A8": {"latency": 1}}', "no convolution has these sizes"),
        ('{"(64, 64, 8, 3, 1, 1, 0)-W8A8": {"latency": 1}}', "no convolution has these sizes"),
        ('{"(64, 64, 8, 3, 1, 1, 3)-W8A8": {"latency": 1}}', "no convolution has these sizes"),
        ('{"(64, 64, 2, 7, 1, 1, 1)-W8A8": {"latency": 1}}', "no convolution has these sizes"),
        ('{"(64, 64, 8, 3, 1, 1, 1)-W0A8": {"latency": 1}}', "expected 1 to 64 bits"),
    ],
)
def test_tables_of_apqs_form_that_cannot_be_are_refused(tmp_path, text, message):
    (tmp_path / "apq.json").write_text(text)
    with pytest.raises(measured_tables.LutError, match=message):
        measured_tables.read_apq(tmp_path / "apq.json", "latency")


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
    for changed in (values * -1.0, values * 0, values * np.nan):
        np.save(path, changed)
        with pytest.raises(measured_tables.LutError, match=r"stem.* at W1A1 costs .*: expected a number"):
            measured_tables.read_haq(path, LAYERS)
    path.write_bytes(b"")
    with pytest.raises(measured_tables.LutError, match=r"cannot read .* as a NumPy array"):
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
