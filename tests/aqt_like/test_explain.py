import subprocess
import sys

import pytest

import aqt_like
from aqt_like.explain import describe
from aqt_like.formats import UnknownFormatError


def test_a_small_float_is_told_whole(capsys):
    aqt_like.explain("e2m1")
    assert capsys.readouterr().out == (
        "e2m1: 4 bits\n"
        "  values               15, zero counted once, of 16 codes\n"
        "  range                -6 … 6\n"
        "  fraction bits        1\n"
        "  exponent bias        1\n"
        "  smallest normal      1\n"
        "  smallest subnormal   0.5\n"
        "  all of them          ± 0 0.5 1 1.5 2 3 4 6\n"
        "  0 |·······|·······|·······|·······|···············|··············|·······························| 6\n"
    )


def test_integers_and_wide_formats():
    assert "step                 1, evenly spaced" in describe("int5")
    assert "values               256" in describe("uint8")
    assert "all of them" not in describe("int8")
    assert "used as they are" in describe("bf16")
    with pytest.raises(ValueError, match="too many values"):
        describe("fp32")
    with pytest.raises(UnknownFormatError):
        describe("fp9")


def test_command():
    def run(*names):
        return subprocess.run([sys.executable, "-m", "aqt_like", *names], capture_output=True, text=True, check=False)

    assert run("int3").stdout.startswith("int3: 3 bits")
    assert "unknown number format 'int33'" in run("int33").stderr
    assert "fp32 has too many values to list" in run("fp32").stderr
    assert "usage" in run().stderr
