import json

import numpy as np
import pytest

from launch import sensitivity
from launch.training.run_directory import CONFIG, SUMMARY


@pytest.fixture
def finished(tiny_config, run_experiment):
    tiny_config.policy, tiny_config.genome, tiny_config.target = "fixed", "bf16", 1.5
    return run_experiment(tiny_config)[0][0]


def read(directory):
    return json.loads((directory / "sensitivity.json").read_text())


def test_sensitivities_and_assignments_are_told_and_written(finished, capsys, tiny_config, tmp_path, run_experiment):
    sensitivity.main([str(finished), "--examples=200"])
    document = read(finished)
    layers = json.loads((finished / SUMMARY).read_text())["layers"]
    assert list(document["signal_to_noise_db"]) == [layer["path"] for layer in layers]
    for decibels in document["signal_to_noise_db"].values():
        assert decibels == sorted(decibels)
    for result in document["assignments"].values():
        assert result["relative_cost"] <= 1
        assert 0 <= result["test_accuracy_without_training"] <= 1
    assert "knapsack" in capsys.readouterr().out
    assert "<svg" in (finished / "sensitivity.svg").read_text()

    # By Fisher scores, with the run as its own teacher; several targets, and a drop that is measured.
    taught = json.loads((finished / CONFIG).read_text())
    taught["distillation"]["teacher"] = str(finished)
    (finished / CONFIG).write_text(json.dumps(taught))
    options = ["--score=fisher", "--target=1.5,2.5", "--max_drop=3", "--examples=200"]
    sensitivity.main([str(finished), *options])
    by_fisher = read(finished)
    assert by_fisher["signal_to_noise_db"] == document["signal_to_noise_db"]
    assert (np.diff(list(by_fisher["fisher_score"].values()), axis=1) < 0).all()
    assert list(by_fisher["targets"]) == ["1.5", "2.5"]
    assert by_fisher["targets"]["1.5"]["target"] == document["target"]
    for target, of_target in by_fisher["targets"].items():
        assert all(result["relative_cost"] <= 1 for result in of_target["assignments"].values())
        genome = json.loads((finished / f"genome-knapsack-{target}.json").read_text())
        assert {path: layer["format"] for path, layer in genome["layers"].items()} == (
            of_target["assignments"]["knapsack"]["layers"]
        )
    dropped = by_fisher["max_drop"]
    assert dropped["drop"] == pytest.approx(
        100 * (dropped["float_validation_accuracy"] - dropped["validation_accuracy"]), abs=1e-6
    )
    assert dropped["drop"] <= 3
    lost = [100 * (dropped["float_validation_accuracy"] - one["validation_accuracy"]) for one in dropped["measured"]]
    costs = [one["cost"] for one in dropped["measured"]]
    assert costs == sorted(costs)
    assert dropped["cost"] == min(cost for cost, points in zip(costs, lost, strict=True) if points <= 3 + 1e-6)
    assert (finished / "genome-max-drop.json").exists()
    assert f"max drop 3: {dropped['drop']:.4g} points of accuracy" in capsys.readouterr().out

    # What was found can be trained.
    tiny_config.genome = str(finished / "genome-knapsack.json")
    ((directory,), _) = run_experiment(tiny_config, tmp_path / "trained")
    trained = json.loads((directory / SUMMARY).read_text())
    assert [layer["format"] for layer in trained["layers"]] == list(
        document["assignments"]["knapsack"]["layers"].values()
    )


def test_what_cannot_be_used_is_told(tmp_path, finished, monkeypatch):
    with pytest.raises(SystemExit, match="holds no run"):
        sensitivity.main([str(tmp_path / "nothing")])
    for options, message in (
        (["--target=0.5"], r"--target=0.5: the budget 0.5 × int4 is below the cheapest genome, which costs 1 × int4"),
        (["--target=1.5,0.5", "--max_drop=1"], r"--target=0.5: .* is below the cheapest genome"),
        (["--target=1.5,many"], r"--target=many: expected numbers above 0"),
        (["--target=nan"], r"--target=nan: expected numbers above 0"),
        (["--target=1.5", "--target=1.50"], r"--target=1.50 is there twice"),
        (["--max_drop=-1"], r"--max_drop=-1: expected points of quality"),
        (["--examples=0"], r"--examples=0: expected a whole number"),
    ):
        with pytest.raises(SystemExit, match=rf"^error: {message}"):
            sensitivity.main([str(finished), *options])
    with monkeypatch.context() as patched:
        patched.setattr(sensitivity.Assigner, "_quality", lambda self, genome, split: 0.0)
        with pytest.raises(SystemExit, match=r"^error: --max_drop=1: even the dearest genome, .* points of accuracy"):
            sensitivity.main([str(finished), "--max_drop=1", "--examples=100"])
    (finished / SUMMARY).unlink()
    with pytest.raises(SystemExit, match="holds a run that is not finished"):
        sensitivity.main([str(finished)])
