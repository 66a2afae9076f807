import json

import pytest

from hwcost import measured_tables
from launch import lut


def test_any_keys_are_filled_in_apqs_form(tmp_path, capsys):
    keys = ["(64, 64, 28, 3, 1, 1, 64)-W4A8", "head", "(32, 16, 112, 1, 1, 0, 1)-W8A8", "tail"]
    (tmp_path / "keys.json").write_text(json.dumps(keys))
    lut.main(["build", "--device=bitfusion", f"--keys={tmp_path}/keys.json", f"--out={tmp_path}/table.json"])
    assert "4 settings of bitfusion" in capsys.readouterr().out
    table = json.loads((tmp_path / "table.json").read_text())
    assert list(table) == keys
    assert table["head"]["latency"] == pytest.approx(0.295904, abs=1e-12)
    assert table["tail"] == {"latency": pytest.approx(0.081608), "energy": pytest.approx(0.1518, rel=0.01)}
    lut.main(["convert", f"--apq={tmp_path}/table.json", "--metric=energy", f"--out={tmp_path}/energy.csv"])
    assert len(measured_tables.read(tmp_path / "energy.csv").entries) == 4


def test_the_published_table_is_filled_again(bitfusion_file, tmp_path):
    lut.main(["build", "--device=bitfusion", f"--keys={bitfusion_file}", f"--out={tmp_path}/table.json"])
    ours, theirs = (json.loads(path.read_text()) for path in (tmp_path / "table.json", bitfusion_file))
    assert list(ours) == list(theirs)
    assert max(abs(ours[key]["latency"] - theirs[key]["latency"]) for key in theirs) < 1e-9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build", "--device=bitfusion", "--keys=nowhere.json", "--out=x.json"], "cannot read keys from nowhere.json"),
        (["build", "--device=bitfusion", "--keys=KEYS", "--out=nowhere/x.json"], "error: nowhere/x.json: No such file"),
        (
            ["build", "--device=bitfusion", "--keys=pyproject.toml", "--out=x.json"],
            "cannot read keys from pyproject.toml",
        ),
        (["convert", "--haq=nowhere.npy", "--out=x.json"], "--haq needs --model"),
        (["measure", "--backend=jax", "--model=examples.digits_mlp:make_model", "--out=x.json"], "needs --input"),
        (["measure", "--backend=jax", "--model=lenet", "--out=x.json"], "model 'lenet'"),
        (["measure", "--backend=jax", "--model=resnet18", "--set=width", "--out=x.json"], "expected NAME=VALUE"),
        (["convert", "--apq=nowhere.json", "--out=x.json"], "cannot read nowhere.json as a table of APQ's"),
    ],
)
def test_errors_are_one_line(arguments, message, tmp_path):
    (tmp_path / "keys.json").write_text('["tail"]')
    arguments = [argument.replace("KEYS", str(tmp_path / "keys.json")) for argument in arguments]
    with pytest.raises(SystemExit, match=message):
        lut.main(arguments)


@pytest.mark.parametrize(
    "key",
    ["(64, 64, 28, 3, 0, 1, 1)-W4A8", "(64, 64, 28, 3, 1, 1, 0)-W4A8", "(64, 64, 28, 3, 1, 1, 1)-W0A8", 1, None, [2]],
)
def test_keys_of_no_layer_are_refused(key, tmp_path):
    (tmp_path / "keys.json").write_text(json.dumps([key]))
    with pytest.raises(SystemExit, match=r"error: key .*: (no convolution has these sizes|expected)"):
        lut.main(["build", "--device=bitfusion", f"--keys={tmp_path}/keys.json", f"--out={tmp_path}/table.json"])
    assert not (tmp_path / "table.json").exists()


@pytest.mark.parametrize("option", ["--batch=0", "--threads=-1", "--repetitions=0", "--classes=0", "--batch=1.5"])
def test_numbers_of_options_are_above_0(option, capsys):
    with pytest.raises(SystemExit):
        lut.main(["measure", "--model=resnet18", "--out=x.json", option])
    assert f"{option.partition('=')[2]}: expected a whole number above 0" in capsys.readouterr().err


def test_a_network_is_measured_and_then_searched_by(tmp_path, capsys):
    command = ["measure", "--model=examples.digits_mlp:make_model", "--input=8,8,1", "--backend=jax", "--repetitions=2"]
    table = tmp_path / "mine.json"
    lut.main([*command, f"--out={table}"])
    said = capsys.readouterr().out
    assert "32 bits" in said
    assert "sum / measured" in said
    measured = measured_tables.read(table)
    assert "jax" in measured.device
    assert {bits for _, bits in measured.entries} == {(16, 16), (32, 32)}
    assert {entry.repetitions for entry in measured.entries.values()} == {2}
    samples = table.with_suffix(".samples.jsonl").read_text()
    lut.main([*command, f"--out={table}"])
    assert table.with_suffix(".samples.jsonl").read_text() == samples
    assert measured_tables.read(table) == measured
