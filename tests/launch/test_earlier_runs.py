"""Finished runs of earlier versions can be reported, priced and frozen.

`earlier_run` is of 0.1.0 before summaries said their kind, without its checkpoint; `earlier_checkpoint` is of before
layers multiplied codes and before runs left networks (105d8ce, the tiny config of the tests for 100 epochs).
"""

import json
import pathlib
import shutil

import numpy as np
import pytest

import aqt_like
from launch import cost, freeze, report, sensitivity
from launch.reports.recorded_runs import read_runs
from launch.training import earlier_configs, finished
from launch.training.checkpoints import CheckpointError
from tests import tiny_network

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


@pytest.fixture
def directory(tmp_path):
    return shutil.copytree(GOLDEN / "earlier_run", tmp_path / "run")


def test_it_is_reported(directory, capsys):
    assert [(run.summary["name"], run.summary["kind"]) for run in read_runs([directory])] == [
        ("FLIQS int_s", "searched"),
        ("uniform int4", "uniform"),
    ]
    report.main([str(directory)])
    assert "97.78 %" in capsys.readouterr().out
    page = (directory / "report.html").read_text()
    assert "The policy over time" in page


def test_settings_that_had_no_effect_do_not_keep_it_from_being_read(directory):
    config = json.loads((directory / "config.json").read_text())
    config["data"] |= {"data_dir": "somewhere", "stream": True}
    (directory / "config.json").write_text(json.dumps(config))
    assert finished.read_experiment(directory).source.train_examples == 1437


def test_settings_of_controllers_that_came_later_are_those_of_before():
    config = {"policy": "reinforce", "controller": {"reinforce": {"paired": True}, "fisher": {"examples": 8}}}
    today = earlier_configs.of_today(config)["controller"]
    assert today == {"reinforce": {"paired": True, "within_budget": False}, "fisher": {"examples": 8}}


def test_its_genome_is_priced(directory, capsys):
    genome = directory / "genome.json"
    cost.main(["--model=cifar_resnet", "--set=depth=8", "--set=width=4", f"--format={genome}", "--json"])
    layers = {row["path"]: row["format"] for row in json.loads(capsys.readouterr().out)["layers"]}
    summary = json.loads((directory / "summary.json").read_text())
    assert layers == {layer["path"]: layer["format"] for layer in summary["layers"]}


@pytest.fixture
def with_checkpoint(tmp_path):
    return shutil.copytree(GOLDEN / "earlier_checkpoint", tmp_path / "run")


def test_it_is_frozen(with_checkpoint, capsys):
    with pytest.raises(SystemExit, match=r"has no weights.safetensors, .* `python -m launch.freeze .*` makes it"):
        sensitivity.main([str(with_checkpoint)])
    with pytest.raises(SystemExit, match=r"points from the summary's: expected at most 0.5 \(--tolerance\)"):
        freeze.main([str(with_checkpoint)])
    assert not list(with_checkpoint.glob("*.safetensors"))
    freeze.main([str(with_checkpoint), "--tolerance=1"])  # 2 of 360 images
    said = " ".join(capsys.readouterr().out.split())
    assert "points from the summary's; wrote network.safetensors and weights.safetensors" in said
    network, variables = aqt_like.load_network(with_checkpoint / "network.safetensors", tiny_network.make_network(10))
    summary = json.loads((with_checkpoint / "summary.json").read_text())
    assert network.formats == {layer["path"]: layer["format"] for layer in summary["layers"]}
    assert np.isfinite(network.apply(variables, np.ones((1, 8, 8, 1), np.float32), train=False)).all()
    with pytest.raises(SystemExit, match=r"has network.safetensors and weights.safetensors: remove"):
        freeze.main([str(with_checkpoint)])
    before = (with_checkpoint / "network.safetensors").read_bytes()
    (with_checkpoint / "weights.safetensors").unlink()
    freeze.main([str(with_checkpoint), "--tolerance=1"])
    assert capsys.readouterr().out.endswith("; wrote weights.safetensors\n")
    assert (with_checkpoint / "network.safetensors").read_bytes() == before


def test_it_does_not_go_on_if_it_is_not_finished(with_checkpoint, run_experiment):
    """Its state had other parts; a finished one is already complete."""
    config = finished.read_experiment(with_checkpoint).config
    _, said = run_experiment(config, with_checkpoint)
    assert "already complete" in said
    (with_checkpoint / "summary.json").unlink()
    with pytest.raises(CheckpointError, match=r"the run in .* is of an earlier version, and cannot go on") as refused:
        run_experiment(config, with_checkpoint)
    assert "\n" not in str(refused.value)
    assert not list((with_checkpoint / "checkpoints").glob("damaged*"))
