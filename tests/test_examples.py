import json
import logging

import pytest

from examples import digits_mlp


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
