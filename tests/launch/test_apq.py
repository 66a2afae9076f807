"""APQ from end to end, in as few steps as there can be."""

import dataclasses
import importlib
import itertools
import json

import numpy as np
import pytest
from rich.console import Console

from apq_jax import space as space_lib
from apq_jax.evolution import BudgetError
from apq_jax.space import Stage
from configs import apq_digits
from hwcost.journal import JournalError
from launch import loop
from launch.apq import finish, predictor, records, report, search, supernet
from launch.apq import pipeline as pipeline_lib
from launch.experiment import ConfigError

STEPS = (
    supernet.train,
    records.collect,
    predictor.fit,
    search.search,
    finish.finish,
)


@pytest.fixture
def config(monkeypatch):
    tiny = dataclasses.replace(space_lib.find("digits"), stages=(Stage(8, 1, 1, 2),))
    monkeypatch.setitem(space_lib.SPACES, "tiny", tiny)
    config = apq_digits.get_config()
    config.space = "tiny"
    config.data.valid_examples = 1200
    config.supernet.update({"epochs": 1.0, "batch_size": 32, "checkpoint_every": 2})
    config.records.update(
        {"float": 20, "quantized": 6, "policies": 2, "batch_size": 64, "calibration_batches": 1, "fine_tuning_steps": 1}
    )
    config.predictor.update({"hidden": 8, "steps": 20, "held_out": 2, "counts": (2,)})
    config.search.update({"budgets": ("bitfusion_latency=0.0105",), "generations": 5})
    config.finish.update({"epochs": 0.2, "batch_size": 32, "valid_batch_size": 64, "recalibration_batches": 1})
    return config


def run(config, workdir, steps=STEPS):
    pipeline = pipeline_lib.prepare(config, workdir, Console(quiet=True))
    for step in steps:
        step(pipeline)
    return pipeline


def test_all_steps_and_their_report(config, tmp_path):
    pipeline = run(config, tmp_path)
    summary = pipeline.read(pipeline_lib.SUMMARY)
    assert len(summary["networks"]) == 1
    for network in summary["networks"]:
        directory = tmp_path / "found" / network["name"]
        finished = json.loads((directory / "run" / "summary.json").read_text())
        # The price that was searched by is that of the network cut out.
        assert finished["cost"] == pytest.approx(network["costs"]["bitfusion_latency"], rel=1e-9)
        assert finished["cost"] <= network["budget"]["bitfusion_latency"]
        formats = {layer["path"]: layer["format"] for layer in finished["layers"]}
        choices = network["choices"]
        bits = {choices[f"stage1_block1.pointwise_{kind}"] for kind in ("weights", "inputs")}
        assert set(formats["stage1_block1/expand/conv"].split("/")) == bits
        assert formats["stem/conv"] == formats["classifier"] == "int8"
        assert network["accuracy"] == finished["accuracy"]
    page = report.write(tmp_path).read_text()
    for text in ("Found networks", "Predictors", "Accuracy against bitfusion latency"):
        assert text in page
    report.print_table(summary, Console(quiet=True))

    # Once more: all is there already. Another budget searches anew, and needs nothing else.
    before = (tmp_path / pipeline_lib.SUMMARY).read_text()
    run(config, tmp_path)
    assert (tmp_path / pipeline_lib.SUMMARY).read_text() == before
    other = pipeline_lib.prepare(
        config, tmp_path, Console(quiet=True), ["bitfusion_latency=0.011,0.015", "weight_bytes=9000"]
    )
    search.search(other)
    found = other.read(pipeline_lib.SEARCH)["found"]
    assert [list(each["budget"].values()) for each in found] == [[0.011, 9000], [0.015, 9000]]
    assert all(each["costs"][name] <= limit for each in found for name, limit in each["budget"].items())

    # So do other settings; NSGA-II gives a front for each set of budgets.
    config.search.update({"selection": "nsga2", "budgets": ("bitfusion_latency=0.014,weight_bytes=9000",)})
    search.search(pipeline_lib.prepare(config, tmp_path, Console(quiet=True)))
    front = other.read(pipeline_lib.SEARCH)["found"]
    assert len(front) > 1
    for one, next_one in itertools.pairwise(front):
        assert one["costs"]["bitfusion_latency"] <= next_one["costs"]["bitfusion_latency"] <= 0.014
    names = {finish.name_of(network) for network in front}
    assert len(names) == len(front)
    assert all(name.startswith("bitfusion_latency-0.014-weight_bytes-9000-") for name in names)

    # A kill leaves half a line; what is missing is measured again, and comes out the same.
    path = tmp_path / pipeline_lib.RECORD_FILES["quantized"]
    whole = path.read_text()
    path.write_text(whole[:-40])
    records.collect(other)
    assert path.read_text() == whole

    # More records go on from these, and make another predictor.
    records.collect(other, counts={"float": 21})
    assert path.read_text() == whole
    float_path = tmp_path / pipeline_lib.RECORD_FILES["float"]
    assert len(float_path.read_text().splitlines()) == 1 + 21
    before = other.read("predictor/summary.json")
    predictor.fit(other)
    after = other.read("predictor/summary.json")
    assert (before["records"], after["records"]) == ({"float": 20, "quantized": 6}, {"float": 21, "quantized": 6})
    assert not other.done(pipeline_lib.SEARCH, records=after["records"])

    # Damage is told.
    (tmp_path / predictor.FILES["quantized"]).write_bytes(b"damaged")
    with pytest.raises(ConfigError, match=r"cannot read the predictor .*quantized.safetensors"):
        search.search(other)
    path.write_text("".join(whole.splitlines(keepends=True)[:3]))
    with pytest.raises(ConfigError, match="2 quantised records: expected more than predictor.held_out=2"):
        predictor.fit(other)


def test_the_once_for_all_network_goes_on_after_a_stop(config, tmp_path, monkeypatch):
    uninterrupted = run(config, tmp_path / "whole", STEPS[:1]).read("supernet/summary.json")
    original = loop.run

    def stopped(state, *, total_steps, **rest):
        original(state, total_steps=5, **rest)
        raise loop.Stopped(1)

    monkeypatch.setattr(loop, "run", stopped)
    with pytest.raises(loop.Stopped):
        run(config, tmp_path / "stopped", STEPS[:1])
    monkeypatch.setattr(loop, "run", original)
    resumed = run(config, tmp_path / "stopped", STEPS[:1]).read("supernet/summary.json")
    for key in ("steps", "state_sha256", "validation_accuracy"):
        assert resumed[key] == uninterrupted[key]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"space": "huge"}, ValueError, "space 'huge'"),
        ({"space": "cifar"}, ConfigError, r"space='cifar' is for images of \(32, 32, 3\) in 10 classes; digits has"),
        ({"supernet.sampling": "all"}, ConfigError, "supernet.sampling='all'"),
        ({"search.selection": "best"}, ConfigError, "search.selection='best': expected one of fittest, nsga2"),
        ({"predictor.held_out": 6}, ConfigError, "predictor.held_out=6: expected some of the 6 records"),
        ({"search.budgets": ("bitfusion_latency",)}, ConfigError, "expected NAME=VALUE"),
        ({"search.budgets": ("watts=1",)}, ValueError, "cost 'watts'"),
        ({"search.budgets": ("weight_bytes=1",)}, BudgetError, "no genome is within 1, reachable is"),
        ({"search.budgets": ("weight_bytes=9000", "bit_operations=1e9")}, ConfigError, "the same costs in every set"),
    ],
)
def test_bad_settings_are_told_before_anything_runs(config, tmp_path, changes, error, message):
    for key, value in changes.items():
        config.update_from_flattened_dict({key: value})
    with pytest.raises(error, match=message):
        pipeline_lib.prepare(config, tmp_path / "new", Console(quiet=True))
    assert not (tmp_path / "new").exists()


def test_a_folder_of_data_can_be_named_on_the_command_line():
    for name in ("apq_digits", "apq_cifar10", "apq_imagenet"):
        config = importlib.import_module(f"configs.{name}").get_config()
        assert config.data.get_type("data_dir") is str
        config.data.data_dir = "somewhere"


def test_steps_out_of_order_are_told(config, tmp_path):
    pipeline = pipeline_lib.prepare(config, tmp_path, Console(quiet=True))
    for step in STEPS[1:]:
        with pytest.raises((ConfigError, JournalError), match=r"run the steps before|cannot read"):
            step(pipeline)


@pytest.mark.parametrize("name", ["apq_digits", "apq_cifar10", "apq_imagenet"])
def test_configs_name_spaces_and_budgets_that_there_are(name):
    config = importlib.import_module(f"configs.{name}").get_config()
    space = space_lib.find(config.space, config.image_size)
    assert set(config.supernet.stages) == {"full", "kernel", "channels", "depth"}
    assert space.blocks
    assert np.isfinite(config.supernet.epochs)
