import json
import logging

import pytest

from examples import digits_mlp, text_transformer


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


def test_a_transformer_on_text_is_searched(tmp_path):
    text_transformer.main(tmp_path, epochs=0.1)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["config"]["loss"] == "examples.text_transformer:loss"
    assert summary["accuracy"] > 0.05
    chosen = {layer["path"]: layer["format"] for layer in summary["layers"]}
    assert len(chosen) == 2 * (4 + 2) + 1
    assert chosen["attention1/query"] == chosen["attention1/key"] == chosen["attention1/value"]
    assert "attention1/*.format" in {decision["name"] for decision in summary["decisions"]}
