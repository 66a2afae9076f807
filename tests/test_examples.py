import json
import logging

import pytest

from configs import fliqs_digits
from examples import digits_mlp, own_loop, text_transformer
from hwcost.pricing import price_exactly
from launch import export
from launch.runtimes import self_check
from launch.training.experiment import prepare_experiment


@pytest.fixture(autouse=True)
def quiet():
    logging.getLogger("absl").setLevel(logging.WARNING)


def test_a_network_that_is_not_ours_is_searched(tmp_path):
    digits_mlp.main(tmp_path, epochs=2.0)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [layer["path"] for layer in summary["layers"]] == ["hidden1", "hidden2", "logits"]
    assert summary["layers"][0]["format"] == "int8"  # as its rule says
    assert len(summary["decisions"]) == 3
    assert summary["search_step_compilations"] == 1
    assert (tmp_path / "uniform-int8" / "summary.json").exists()
    pytest.importorskip("onnx", reason="needs requirements-devices.txt")
    export.main([str(tmp_path), "--to=onnx", f"--out={tmp_path / 'export'}"])
    [file] = json.loads((tmp_path / "export" / "export.json").read_text())["files"].values()
    in_batches = [check for check in file["checks"] if check["batch"] > 1]
    assert [check["decisions"] for check in in_batches] == [360] * len(self_check.ONNX_RUNTIMES)
    assert all(check["differing"] == [] for check in file["checks"])


def test_a_transformer_on_text_is_searched(tmp_path, monkeypatch):
    monkeypatch.setattr(text_transformer, "LENGTH", 16)
    text_transformer.main(tmp_path, epochs=0.01)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["config"]["loss"] == "examples.text_transformer:loss"
    assert summary["accuracy"] > 0.05
    chosen = {layer["path"]: layer["format"] for layer in summary["layers"]}
    assert len(chosen) == 2 * (4 + 2) + 1
    assert chosen["attention1/query"] == chosen["attention1/key"] == chosen["attention1/value"]
    assert "attention1/*.format" in {decision["name"] for decision in summary["decisions"]}


def test_a_loop_of_ones_own_searches(capsys):
    accuracy, cost, chosen = own_loop.main(steps=60)
    assert accuracy > 0.3
    assert 0 < cost < 4
    assert list(chosen) == ["layers_0", "layers_2", "layers_4"]
    assert f"{accuracy:.2%}" in capsys.readouterr().out


def test_a_device_of_ones_own_is_a_cost():
    config = fliqs_digits.get_config()
    config.formats, config.baselines = "int_s", ("int4", "int8")
    config.cost, config.target, config.target_unit = "examples.microcontroller:LATENCY", 1.1, "int8"
    prepared = prepare_experiment(config)
    table, plan = prepared.search.budgets[0].table, prepared.plan
    four, eight, sixteen = (price_exactly(table, plan.uniform_genome(name)) for name in ("int4", "int8", "bf16"))
    assert eight < four  # four bits save no time there
    assert prepared.search.budgets[0].target == 1.1 * eight
    assert sixteen != eight
    assert prepared.costs["examples.microcontroller:LATENCY"].unit == "ms"
