"""Commands end in one line, and config files that cannot be loaded say where."""

import errno
import json
import os

import pytest

from launch import command_line, ending, report
from launch.training.checkpoints import CheckpointError

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "W/metrics.jsonl")


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (ValueError("epochs=0: expected\n  more"), "error: epochs=0: expected more"),
        (FULL, "error: W/metrics.jsonl: No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "W"), "error: W: Permission denied"),
        (OSError("no reason"), "error: no reason"),
        (MemoryError(), "error: out of memory"),
        (CheckpointError("damaged"), "error: damaged"),
        (KeyboardInterrupt(), 130),
    ],
)
def test_what_a_user_can_mend_is_one_line(raised, told):
    with pytest.raises(SystemExit) as ended, ending.in_one_line(CheckpointError):
        raise raised
    assert ended.value.code == told


def test_a_fault_of_ours_has_its_traceback():
    with pytest.raises(KeyError), ending.in_one_line():
        raise KeyError("x")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("# Title\nIt's no config\n", r"line 2: SyntaxError: unterminated string literal"),
        ("\0\n", r"(SyntaxError|ValueError): source code string cannot contain null bytes"),
        ("x = 1\n", r"has no function get_config"),
        ("def get_config():\n    return confg\n", r"line 2: NameError: name 'confg' is not defined"),
        ("import nowhere\n", r"line 1: ModuleNotFoundError: No module named 'nowhere'"),
        (
            "from configs import common\ndef get_config():\n    mine = common.get_config()\n    mine.rules = 'stem'\n",
            r"line 4: TypeError: Could not override field 'rules'",
        ),
        ("def get_config(variant):\n    return {}[variant]\n", r"line 2: KeyError: 'small'"),
        ("def get_config(variant, size):\n    return 1\n", r"TypeError: get_config\(\) missing 1 required"),
    ],
)
def test_a_config_file_that_cannot_be_loaded_says_where(tmp_path, text, told):
    (tmp_path / "mine.py").write_text(text)
    variant = ":small" if "variant" in text else ""
    with pytest.raises(SystemExit, match=rf"error: .*mine\.py.*{told}"):
        command_line._ConfigParser().parse(f"{tmp_path}/mine.py{variant}")


def test_an_unknown_variant_is_told_with_those_there_are():
    with pytest.raises(SystemExit, match=r"error: --config=fliqs_cifar10:vgg: .*no recipe for the network 'vgg'"):
        command_line._ConfigParser().parse("fliqs_cifar10:vgg")


@pytest.mark.parametrize("contents", ["", "[1]", "null", '{"name": "x"}', "[" * 100_000, "\0"])
def test_a_summary_that_is_none_is_told(tmp_path, contents):
    (tmp_path / "summary.json").write_text(contents)
    with pytest.raises(SystemExit, match=r"error: .*summary\.json is (damaged|not the summary of a run)"):
        report.main([str(tmp_path)])


def test_a_page_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "summary.json").write_text(json.dumps({"kind": "apq"}))
    with pytest.raises(SystemExit, match=r"error: .*summary\.json is not the summary of an APQ experiment: it lacks"):
        report.main([str(tmp_path)])
