"""APQ over a family of FLIQNAS, from end to end, and genomes that go from one search to the other."""

import dataclasses
import io
import json

import pytest
from rich.console import Console

from aqt_like.formats import parse_format
from hwcost import pricing, workload
from hwcost.costs import COSTS
from hwcost.genome_file import read_genome, write_genome
from launch.apq import apq_settings, rate
from launch.apq.pipeline import SUMMARY, prepare_pipeline
from launch.reports import apq_page
from launch.training import finished
from launch.training.experiment import prepare_experiment
from launch.training.settings import ConfigError
from tests.launch.apq import test_apq
from tests.launch.conftest import changed
from tests.launch.training import test_found_network

COST = "bit_operations"


def make_config():
    """The family of the tests of FLIQNAS."""
    config, fliqnas = test_apq.make_config(), test_found_network.make_config()
    config.space = ""
    config.model, config.architecture, config.formats = fliqnas.model, fliqnas.architecture, "int4,int8"
    config.model.dropout = 0.0
    config.predictor.counts = ()
    budgets = (COST, 2.0, "int4"), ("weight_bytes", 1.0, "int8")
    config.search.budgets = (tuple(test_apq.budget(*budget) for budget in budgets),)
    return config


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return test_apq.run(make_config(), tmp_path_factory.mktemp("family") / "run")


def test_what_is_found_costs_what_its_own_layers_do_and_is_served(pipeline):
    (network,) = pipeline.read(SUMMARY)["networks"]
    base = pipeline.space.family.network(pipeline.space.family.base)
    of_base = workload.trace(base, (8, 8, 1), train=False)
    base_cost = COSTS[COST].uniform(of_base, parse_format("int4"))
    assert pipeline.budgets[0] == {COST: 2 * base_cost, "weight_bytes": sum(layer.weights for layer in of_base)}
    directory = pipeline.workdir / "found" / network["name"] / "run"
    experiment = finished.read_experiment(directory)
    genome = finished.read_genome_of(directory, experiment)
    formats = experiment.plan.layer_formats(genome)
    by_name = {fmt.name: fmt for fmt in pipeline.space.formats}
    layers = workload.trace(experiment.search.model, (8, 8, 1), train=False)
    own = sum(float(COSTS[COST].layer_costs(layer, [by_name[formats[layer.path]]])[0]) for layer in layers)
    assert network["costs"][COST] == pytest.approx(own)
    assert own <= network["budget"][COST]
    summary = json.loads((directory / "summary.json").read_text())
    assert (summary["cost"], summary["accuracy"]) == (pytest.approx(own), network["accuracy"])
    assert {each["name"]: each["target"] for each in summary["budgets"]} == pipeline.budgets[0]
    about = finished.read_network(directory, experiment).about
    assert about["genome"]["architecture"]["kernels"] == [int(network["choices"]["stage1_block1.kernel"])]
    assert "network of a family of mobilenetv2" in apq_page.write(pipeline.workdir, directory / "page.html").read_text()


def test_genomes_go_from_one_search_to_the_other(pipeline, tmp_path):
    (network,) = pipeline.read(SUMMARY)["networks"]
    found = pipeline.workdir / "found" / network["name"] / "genome.json"
    fliqnas = test_found_network.make_config()
    plan = prepare_experiment(fliqnas).plan
    (row,) = rate.rated(pipeline, [str(found)])
    assert row["predicted"]["quantized"] == pytest.approx(network["predicted_accuracy"], abs=1e-6)
    assert row["costs"] == network["costs"]
    # As FLIQNAS would write it: formats and sizes by the same names.
    theirs = plan.encode(read_genome(found))
    write_genome(tmp_path / "genome.json", plan.named(theirs))
    assert rate.rated(pipeline, [str(tmp_path / "genome.json")])[0] == row | {"genome": str(tmp_path / "genome.json")}
    fliqnas.update({"policy": "fixed", "genome": str(tmp_path / "genome.json"), "cost": COST})
    experiment = prepare_experiment(fliqnas)
    assert pricing.price_exactly(experiment.search.budgets[0].table, theirs) == pytest.approx(network["costs"][COST])
    console = Console(file=io.StringIO(), width=200)
    rate.run(dataclasses.replace(pipeline, console=console), [str(found)])
    assert f"{row['predicted']['quantized']:.2%}" in console.file.getvalue()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda named: {"choices": {"stage1.depth": "2"}}, "a genome of another search space: it has no stage1_bl"),
        (
            lambda named: {"architecture": {"widths": [3.0]}},
            r"network with widths=\[3.0\], and model.widths is \[",
        ),
        (
            lambda named: {"layers": {k: v._replace(macs=7) for k, v in named.layers.items()}},
            "layers of other sizes: stem/conv has 7 MACs",
        ),
        (
            lambda named: {"layers": {k: v for k, v in named.layers.items() if k != "stem/conv"}},
            "another network: only one of the two has stem/conv",
        ),
    ],
)
def test_genomes_of_other_networks_are_refused(pipeline, tmp_path, change, message):
    named = pipeline.space.named(pipeline.space.largest)
    write_genome(tmp_path / "genome.json", dataclasses.replace(named, **change(named)))
    with pytest.raises(ValueError, match=rf"--genome=.*genome\.json: .*{message}"):
        rate.rated(pipeline, [str(tmp_path / "genome.json")])
    with pytest.raises(ConfigError, match="no genome files: give --genome"):
        rate.rated(pipeline, [])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("space", "tiny", "space='tiny': expected '' with model, architecture, formats, which a family has"),
        ("formats", "", "space='': expected a space, or a family with formats"),
        ("architecture", {}, "space='': expected a space, or a family with architecture"),
        ("model", {"stem": 4}, "model.name: expected the name of a network that has a family"),
        ("image_size", 16, "image_size=16: expected 0, since images say that of a family"),
    ],
)
def test_settings_of_families_are_checked(key, value, message):
    with pytest.raises(ConfigError, match=message):
        apq_settings.check_settings(changed(make_config(), key, value))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.name", "cifar_resnet", "model and architecture: model 'cifar_resnet'"),
        ("model.dropout", 0.1, r"model.dropout=0.1: expected 0"),
        ("architecture.kernels", (3, 4), r"model and architecture: kernels=\(3, 4\): 4: expected odd"),
        ("formats", "e2m1,int8", "formats='e2m1,int8': bitfusion_latency is reported: stem/conv: BitFusion computes"),
        ("formats", "int_q", "unknown format space 'int_q'"),
    ],
)
def test_what_is_no_space_is_refused_before_anything_runs(tmp_path, key, value, message):
    with pytest.raises(ValueError, match=message):
        prepare_pipeline(changed(make_config(), key, value), tmp_path / "new", Console(quiet=True))
    assert not (tmp_path / "new").exists()
