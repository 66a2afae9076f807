"""What went into a run stands in what came out, and other inputs are refused."""

import hashlib
import shutil
import sys
import types

import numpy as np
import pytest
from ml_collections import ConfigDict

from launch import data
from launch.data.images import TfdsImages
from launch.training.experiment import ConfigError
from launch.training.provenance import inputs_of
from launch.training.run_directory import claim_directory, read_inputs


def sha256(text):
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A folder of files that a config may name."""
    folder = tmp_path / "files"
    (folder / "teacher").mkdir(parents=True)
    for name in ("clicks", "genome.json", "w.safetensors", "board.csv", "teacher/network.safetensors", "own.txt"):
        (folder / name).write_text(name)
    (folder / "own_module.py").write_text("def function():  # a comment\n    return 1\n")
    module = types.ModuleType("own_module")
    module.__file__ = str(folder / "own_module.py")
    monkeypatch.setitem(sys.modules, "own_module", module)
    return folder


def config_of(files):
    return ConfigDict(
        {
            "data": {"name": "click_log", "file": f"{files}/clicks"},
            "genome": f"{files}/genome.json",
            "init_from": f"{files}/w.safetensors",
            "cost": f"interpolated:{files}/board.csv",
            "budgets": ({"cost": f"{files}/board.csv", "target": 1.0},),
            "distillation": {"teacher": f"{files}/teacher"},
            "model": {"name": "own_module:function", "setting": f"{files}/own.txt"},
            "formats": "int4,int8",
            "policy": "fisher",
        }
    )


def claim(directory, files, source=None, **more):
    config = config_of(files)
    claim_directory(directory, config, inputs_of(config, source), say=more.pop("say", pytest.fail), **more)


@pytest.fixture
def claimed(files, tmp_path):
    """A finished run with all of them."""
    claim(tmp_path / "run", files)
    (tmp_path / "run" / "summary.json").write_text("{}")
    return tmp_path / "run"


def test_digests_are_of_all_that_a_config_names(claimed):
    code = "code of model.name"
    stored = read_inputs(claimed)
    assert stored.pop(code) == sha256("def function():\n    return 1")
    assert stored == {
        "data.file": sha256("clicks"),
        "genome": sha256("genome.json"),
        "init_from": sha256("w.safetensors"),
        "cost": f"interpolated:{sha256('board.csv')}",
        "budgets.0.cost": sha256("board.csv"),
        "distillation.teacher": sha256("teacher/network.safetensors"),
        "model.setting": sha256("own.txt"),
    }


OTHERS = {
    "clicks": "data.file",
    "genome.json": "genome",
    "w.safetensors": "init_from",
    "board.csv": "budgets.0.cost",
    "teacher/network.safetensors": "distillation.teacher",
    "own.txt": "model.setting",
    "own_module.py": "code of model.name",
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_file_in_its_place_is_refused_with_both_digests(claimed, files, name):
    before = read_inputs(claimed)[OTHERS[name]]
    (files / name).write_text("another = 1\n")
    now = sha256("another = 1" if name.endswith(".py") else "another = 1\n")
    with pytest.raises(ConfigError, match=rf"{OTHERS[name]} had the digest {before}, and has {now} now.*Put back"):
        claim(claimed, files)
    assert read_inputs(claimed)[OTHERS[name]] == before


def test_a_moved_file_stays_the_same_file(claimed, files, tmp_path):
    claim(claimed, shutil.copytree(files, tmp_path / "elsewhere"))


def test_comments_are_no_code(claimed, files):
    (files / "own_module.py").write_text("# another comment\ndef function():\n\n    return 1\n")
    claim(claimed, files)


def test_before_anything_is_made_inputs_may_change(files, tmp_path):
    claim(tmp_path / "run", files)
    (files / "clicks").write_text("the right ones")
    claim(tmp_path / "run", files)
    (tmp_path / "run" / "checkpoints" / "4").mkdir(parents=True)
    (files / "clicks").write_text("wrong ones")
    with pytest.raises(ConfigError, match=rf"data.file had the digest {sha256('the right ones')}"):
        claim(tmp_path / "run", files)


def test_a_run_of_an_earlier_version_is_read_and_told(claimed, files):
    (claimed / "inputs.json").unlink()
    notices = []
    claim(claimed, files, say=notices.append)
    assert notices == [
        f"{claimed} tells no digests of its inputs, as earlier versions: whether they are these is not known"
    ]
    (claimed / "inputs.json").write_text('{"data')
    with pytest.raises(ConfigError, match=r"cannot read .*inputs.json"):
        claim(claimed, files)


def arrays(value=0.0, label=0, kind=np.float32):
    split = data.Split(np.full((4, 2), value, kind), np.full(4, label, np.int32))
    return data.Arrays(split, split, classes=2)


class Prepared(TfdsImages):
    """A set of images as tfds prepared it, without tfds."""

    def __init__(self, place, version):
        info = types.SimpleNamespace(full_name=f"images/{version}")
        self._builder = types.SimpleNamespace(data_dir=str(place), info=info)


def test_own_arrays_and_prepared_sets_are_told_apart_by_their_content(files, tmp_path):
    assert arrays().content == arrays().content
    others = [arrays(1.0), arrays(label=1), arrays(kind=np.float16)]
    assert len({arrays().content, *(each.content for each in others)}) == 4
    claim(tmp_path / "own", files, arrays())
    (tmp_path / "own" / "summary.json").write_text("{}")
    claim(tmp_path / "own", files, arrays())
    with pytest.raises(ConfigError, match=rf"data had the digest {arrays().content}, and has {arrays(1.0).content}"):
        claim(tmp_path / "own", files, arrays(1.0))
    for place, record in (("a", "{}"), ("moved", "{}"), ("b", '{"splits": []}')):
        (tmp_path / place).mkdir()
        (tmp_path / place / "dataset_info.json").write_text(record)
    first = Prepared(tmp_path / "a", "1.0.0").content
    assert first == f"images/1.0.0 {sha256('{}')}" == Prepared(tmp_path / "moved", "1.0.0").content
    assert first != Prepared(tmp_path / "a", "1.0.1").content
    assert first != Prepared(tmp_path / "b", "1.0.0").content
