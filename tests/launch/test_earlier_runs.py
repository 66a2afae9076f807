"""A finished run of an earlier version (0.1.0 before summaries said their kind): it can be reported and priced."""

import json
import pathlib
import shutil

import pytest

from launch import cost, report
from launch.reports.recorded_runs import read_runs

STORED = pathlib.Path(__file__).parents[1] / "golden" / "earlier_run"


@pytest.fixture
def directory(tmp_path):
    return shutil.copytree(STORED, tmp_path / "run")


def test_it_is_reported(directory, capsys):
    assert [(run.summary["name"], run.summary["kind"]) for run in read_runs([directory])] == [
        ("FLIQS int_s", "searched"),
        ("uniform int4", "uniform"),
    ]
    report.main([str(directory)])
    assert "97.78 %" in capsys.readouterr().out
    page = (directory / "report.html").read_text()
    assert "The policy over time" in page


def test_its_genome_is_priced(directory, capsys):
    genome = directory / "genome.json"
    cost.main(["--model=cifar_resnet", "--set=depth=8", "--set=width=4", f"--format={genome}", "--json"])
    layers = {row["path"]: row["format"] for row in json.loads(capsys.readouterr().out)["layers"]}
    summary = json.loads((directory / "summary.json").read_text())
    assert layers == {layer["path"]: layer["format"] for layer in summary["layers"]}
