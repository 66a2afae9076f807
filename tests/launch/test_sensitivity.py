import json

import pytest

from launch import sensitivity
from launch.training.run_directory import SUMMARY


@pytest.fixture
def finished(tiny_config, run_experiment):
    tiny_config.policy, tiny_config.genome, tiny_config.target = "fixed", "bf16", 1.5
    return run_experiment(tiny_config)[0][0]


def test_sensitivities_and_assignments_are_told_and_written(finished, capsys, tiny_config, tmp_path, run_experiment):
    sensitivity.main([str(finished), "--examples=200"])
    document = json.loads((finished / "sensitivity.json").read_text())
    layers = json.loads((finished / SUMMARY).read_text())["layers"]
    assert list(document["signal_to_noise_db"]) == [layer["path"] for layer in layers]
    for decibels in document["signal_to_noise_db"].values():
        assert decibels == sorted(decibels)
    for result in document["assignments"].values():
        assert result["relative_cost"] <= 1
        assert 0 <= result["test_accuracy_without_training"] <= 1
    assert "knapsack" in capsys.readouterr().out
    assert "<svg" in (finished / "sensitivity.svg").read_text()

    # What was found can be trained.
    tiny_config.genome = str(finished / "genome-knapsack.json")
    ((directory,), _) = run_experiment(tiny_config, tmp_path / "trained")
    trained = json.loads((directory / SUMMARY).read_text())
    assert [layer["format"] for layer in trained["layers"]] == list(
        document["assignments"]["knapsack"]["layers"].values()
    )


def test_what_cannot_be_read_is_told(tmp_path, finished):
    with pytest.raises(SystemExit, match="holds no run"):
        sensitivity.main([str(tmp_path / "nothing")])
    with pytest.raises(SystemExit, match=r"budget .* is below the cheapest genome"):
        sensitivity.main([str(finished), "--target=0.5"])
    (finished / SUMMARY).unlink()
    with pytest.raises(SystemExit, match="holds a run that is not finished"):
        sensitivity.main([str(finished)])
