"""Configs are found by path and by name, and in each of them `configs` means what belongs to it."""

import sys

import pytest

import configs
from configs import common, fliqs_digits
from launch import load_config
from launch.config_files import ConfigFileError

CONFIG = (
    "from configs import common\ndef get_config(variant='none'):\n    return {'common': common.NAME, 'is': variant}\n"
)


@pytest.fixture
def theirs(tmp_path, monkeypatch):
    """The current directory: one with its own `configs`, which `import` would find."""
    folder = tmp_path / "configs"
    folder.mkdir()
    (folder / "common.py").write_text("NAME = 'theirs'")
    (folder / "mine.py").write_text(CONFIG)
    (folder / "fliqs_digits.py").write_text(CONFIG)
    (tmp_path / "elsewhere.py").write_text("from configs.common import get_config")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def test_a_bare_name_is_a_shipped_config(theirs):
    assert load_config("fliqs_digits").to_dict() == fliqs_digits.get_config().to_dict()
    assert load_config("common").to_dict() == common.get_config().to_dict()
    assert load_config("fliqs_cifar10:mobilenetv2").model.name == "mobilenetv2"


@pytest.mark.parametrize("has_init", [False, True])
def test_a_path_is_a_file_whose_own_folder_comes_first(theirs, has_init):
    if has_init:
        (theirs / "__init__.py").write_text("KEY = 'value'")
        (theirs / "mine.py").write_text(f"from configs import KEY\n{CONFIG}")
    assert load_config("configs/mine.py") == {"common": "theirs", "is": "none"}
    assert load_config("configs/fliqs_digits.py:big") == {"common": "theirs", "is": "big"}
    (theirs / "common.py").unlink()
    (theirs / "mine.py").write_text("from configs.common import get_config")
    assert load_config("configs/mine.py").to_dict() == common.get_config().to_dict()


def test_elsewhere_configs_are_the_shipped_ones(theirs):
    assert load_config("elsewhere.py").to_dict() == common.get_config().to_dict()


def test_afterwards_configs_are_what_they_were(theirs):
    before = {name: module for name, module in sys.modules.items() if f"{name}.".startswith("configs.")}
    load_config("configs/mine.py")
    (theirs / "mine.py").write_text("from configs import no_such_module")
    with pytest.raises(ImportError):
        load_config("configs/mine.py")
    assert before == {name: module for name, module in sys.modules.items() if f"{name}.".startswith("configs.")}
    assert sys.modules["configs"] is configs


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("fliqs_digit", "did you mean fliqs_digits"),
        ("configs/fliqs_criteo.py", "did you mean fliqs_criteo"),
        ("zzz", "shipped are apq_cifar10, "),
        ("recipes", "shipped are"),
        ("", "shipped are"),
    ],
)
def test_what_there_is_not_is_refused_with_near_names(name, hint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigFileError, match=f"there is no config '{name}', neither a file nor shipped; {hint}"):
        load_config(name)
