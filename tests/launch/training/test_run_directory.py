"""Work directories: which a run may claim, and what their files say."""

import json
import math

import pytest

from configs import apq_digits, fliqs_digits
from launch.training.run_directory import CONFIG, claim_directory, read_json, write_json
from launch.training.settings import ConfigError


@pytest.fixture
def config():
    return fliqs_digits.get_config()


def test_a_directory_without_results_does_not_hold_up_the_corrected_command(config, tmp_path):
    config.distillation.teacher = "nowhere"
    claim_directory(tmp_path / "run", config, {}, say=pytest.fail)
    (tmp_path / "run" / "checkpoints").mkdir()
    (tmp_path / "run" / "metrics.jsonl").touch()
    config.distillation.teacher = ""
    claim_directory(tmp_path / "run", config, {}, say=pytest.fail)
    assert read_json(tmp_path / "run" / CONFIG)["distillation"]["teacher"] == ""
    (tmp_path / "run" / "checkpoints" / "20").mkdir()
    config.seed = 3
    with pytest.raises(ConfigError, match="holds a run of another config: seed is 0 there and 3 here"):
        claim_directory(tmp_path / "run", config, {}, say=pytest.fail)


def test_what_is_not_of_a_run_is_left_as_it_is(config, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match=r"--workdir=.*file is a file: expected a directory"):
        claim_directory(tmp_path / "file", config, {}, say=pytest.fail)
    for name, contents in (("summary.json", "{}"), (CONFIG, '{"architectures": ["Bert"]}'), (CONFIG, "[1]")):
        place = tmp_path / f"foreign-{len(contents)}"
        place.mkdir()
        (place / name).write_text(contents)
        with pytest.raises(ConfigError, match=r"but no config.json of a run: expected a new directory|is damaged"):
            claim_directory(place, config, {}, say=pytest.fail)
        assert [path.name for path in place.iterdir()] == [name]
        assert (place / name).read_text() == contents


def test_only_the_first_keys_that_differ_are_told(config, tmp_path):
    claim_directory(tmp_path, config, {}, say=pytest.fail)
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"holds a run of another config: .*; and \d+ more\. Use another") as refused:
        claim_directory(tmp_path, apq_digits.get_config(), {}, say=pytest.fail)
    assert str(refused.value).count("there and") == 8


@pytest.mark.parametrize("contents", ["", '{"epochs": ', "[1]", "null", "[" * 100_000, "\0", '"text"'])
def test_what_is_no_json_object_is_told_with_its_file(contents, tmp_path):
    (tmp_path / "x.json").write_text(contents)
    with pytest.raises(ConfigError, match=r"x\.json is damaged"):
        read_json(tmp_path / "x.json")
    with pytest.raises(ConfigError, match=r"cannot read .*: Is a directory"):
        read_json(tmp_path)


def test_json_holds_finite_numbers_only(tmp_path):
    write_json(tmp_path / "x.json", {"a": [1.0, math.nan], "b": {"c": -math.inf, "d": "NaN"}, "e": (math.inf, 2)})
    text = (tmp_path / "x.json").read_text()
    assert json.loads(text) == {"a": [1.0, None], "b": {"c": None, "d": "NaN"}, "e": [None, 2]}
