"""A search of formats and of an architecture, from end to end: what is served is the network that was cut out."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from fliqs_jax.evaluation import make_logits, make_profile
from fliqs_jax.search import joint_kernels, quantized_variables
from hwcost import pricing, workload
from hwcost.costs import COSTS
from hwcost.genome_file import read_genome, write_genome
from launch import export
from launch.reports import fliqs_page
from launch.training import finished, found_network, trial_run
from launch.training.experiment import prepare_experiment
from tests.launch.conftest import make_tiny_config, run_in

LAYERS = 6


def make_config():
    config = make_tiny_config()
    config.model = {"name": "mobilenetv2", "stages": ((2, 4, 1, 1),), "stem": 4, "head": 8, "multiple": 2}
    config.model.dropout, config.ema, config.rematerialise = 0.1, 0.9, "block"
    config.architecture = {"widths": (0.5, 1.0, 1.5), "kernels": (3, 5)}
    config.profile_fraction = 1.0
    config.controller.reinforce.within_budget = True
    return config


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """The directory of a finished search of six layers, a width and a kernel."""
    return run_in(tmp_path_factory.mktemp("found") / "run", make_config())[0][0]


def read(directory):
    experiment = finished.read_experiment(directory)
    return experiment, finished.read_genome_of(directory, experiment)


def test_the_network_found_is_a_plain_run_of_its_own(ended):
    summary = json.loads((ended / "summary.json").read_text())
    experiment, genome = read(ended)
    settings = read_genome(ended / "genome.json").architecture
    assert set(settings) == {"widths", "kernels"}
    assert experiment.search.family is None
    assert len(experiment.plan.space) == LAYERS
    assert [decision["name"] for decision in summary["decisions"][LAYERS:]] == [
        "stage1_block1.width",
        "stage1_block1.kernel",
    ]
    # Its price is that of its own layers, in the search and here.
    layers = workload.trace(experiment.search.model, (8, 8, 1), train=False)
    formats = experiment.plan.layer_formats(genome)
    by_name = {fmt.name: fmt for fmt in experiment.plan.formats}
    costs = [float(COSTS["bit_operations"].layer_costs(each, [by_name[formats[each.path]]])[0]) for each in layers]
    assert summary["cost"] == pytest.approx(sum(costs))
    assert pricing.price_exactly(experiment.search.budgets[0].table, genome) == pytest.approx(sum(costs))
    assert [(layer["path"], layer["macs"]) for layer in summary["layers"]] == [(e.path, e.macs) for e in layers]
    assert summary["name"].startswith("FLIQNAS")
    # It was within the budget from the first step on, and is now.
    lines = [json.loads(line) for line in (ended / "metrics.jsonl").read_text().splitlines()]
    assert [line["expected_cost"] for line in lines] == pytest.approx([1] * len(lines), abs=0.02)
    assert 0.8 < summary["relative_cost"] <= 1
    assert summary["search_step_compilations"] == 1
    # The file is that of the plain network, and does what the summary says.
    networks = finished.Networks(experiment, trial_run.open_data(experiment))
    network = finished.read_network(ended, experiment)
    assert networks.quality(networks.variables(network), "test") == summary["accuracy"]
    assert network.about["model"]["widths"] == settings["widths"]
    assert network.about["genome"]["architecture"] == settings
    again = networks.frozen(finished.read_weights(ended, experiment), jnp.asarray(genome))
    jax.tree.map(np.testing.assert_array_equal, again.layers, network.layers)
    # What its cost over that of the base went into.
    base = summary["base"]
    plain = prepare_experiment(make_config())
    assert base["cost"] == COSTS["bit_operations"].uniform(plain.plan.base_workload, by_name["int4"])
    assert list(base["log_shares"]) == ["bits", "channels", "kernels"]
    assert np.exp(sum(base["log_shares"].values())) == pytest.approx(summary["cost"] / base["cost"])
    assert [layer["channels"] for layer in summary["layers"]] == [each.out_channels for each in layers]
    assert summary["rank_correlations"]["kernels"] == {"rho": None, "layers": 1}
    page = fliqs_page.write([ended], ended.parent / "report.html").read_text()
    for heading in ("Blocks: channels, formats, kernels", "What the cost went into"):
        assert f"<h2>{heading}</h2>" in page


def test_the_network_found_is_exported(ended, tmp_path, capsys):
    pytest.importorskip("onnx", reason="needs requirements-devices.txt")
    export.main([str(ended), "--to=onnx", "--batch=128", f"--out={tmp_path}"])
    assert "0 of 360 decisions differ" in capsys.readouterr().out
    layers = json.loads((tmp_path / "export.json").read_text())["layers"]
    assert list(layers) == [layer["path"] for layer in json.loads((ended / "summary.json").read_text())["layers"]]


def test_under_a_genome_the_largest_network_has_the_thresholds_of_the_one_cut_out(tmp_path):
    experiment = prepare_experiment(make_config())
    search, plan = experiment.search, experiment.plan
    rng = np.random.default_rng(0)
    genome = rng.integers(0, plan.space.option_counts).astype(np.int32)
    genome[plan.space.index("stage1_block1.width")] = 0
    images = {"input": jnp.asarray(rng.standard_normal((8, 8, 8, 1)), jnp.float32)}
    before = finished.initial_state(experiment, experiment.trials[0])
    before = make_profile(search)(before, jnp.asarray(genome), [images])
    state = make_profile(search)(before, jnp.asarray(genome), [images])

    write_genome(tmp_path / "genome.json", plan.named(genome))
    found = found_network.experiment_of(experiment, tmp_path / "genome.json")
    (trial,) = found.trials
    cut = found_network.cut_out(experiment, before, genome, finished.initial_state(found, trial))
    own = make_profile(found.search)(cut, jnp.asarray(trial.genome), [images])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5), own.calibration, state.calibration)

    def logits(search, state, genome):
        variables = quantized_variables(search, state, jnp.asarray(genome), True)
        return jax.jit(make_logits(search))(variables, images["input"])

    np.testing.assert_allclose(logits(search, state, genome), logits(found.search, own, trial.genome), atol=1e-3)


def test_a_genome_is_for_the_network_that_it_was_found_for(ended, tmp_path):
    found, config = read_genome(ended / "genome.json"), make_config()
    config.update({"policy": "fixed", "genome": str(ended / "genome.json")})
    own = prepare_experiment(config).trials[0].genome
    assert own.tolist() == json.loads((ended / "summary.json").read_text())["genome"]
    config.architecture = ConfigDict()
    plain = prepare_experiment(config)  # The file tells what the config leaves open.
    assert {name: list(plain.config.model[name]) for name in found.architecture} == found.architecture
    assert plain.plan.named(plain.trials[0].genome).architecture == found.architecture
    for change in ({"widths": [found.architecture["widths"][0] + 0.25]}, {"kernels": [7]}):
        with config.unlocked():
            config.model.update(found.architecture | change)
        with pytest.raises(ValueError, match=rf"genome=.*: it is of a network with {next(iter(change))}=\["):
            prepare_experiment(config)
    config = make_config()
    config.update({"policy": "fixed", "genome": str(tmp_path / "genome.json")})
    write_genome(
        tmp_path / "genome.json", dataclasses.replace(found, architecture={"name": "os:system", "command": ""})
    )
    with pytest.raises(ValueError, match=r"architecture\.name='os:system': expected one of cifar_resnet"):
        prepare_experiment(config)
    choices = {name: option for name, option in found.choices.items() if not name.endswith(".width")}
    write_genome(tmp_path / "genome.json", dataclasses.replace(found, choices=choices))
    with pytest.raises(ValueError, match=r"it has no stage1_block1\.width"):
        prepare_experiment(config)


def test_a_search_is_called_by_what_it_searches():
    config = make_config()
    config.rules = (".*: int8",)
    config.target = 4.0
    assert prepare_experiment(config).trials[0].name == "NAS int8"
    config.rules = (".*conv: int8", "classifier: int4")
    assert prepare_experiment(config).trials[0].name == "NAS int8,int4"


def test_kernels_are_trained_together_in_warm_up_and_never_later():
    search = prepare_experiment(make_config()).search
    assert search.joint_steps == 4  # a quarter of 16
    drawn = [joint_kernels(search, jax.random.key(seed), jnp.int32(1)) for seed in range(200)]
    share = np.mean([[bool(value) for value in each.values()] for each in drawn])
    assert share == pytest.approx(0.75, abs=0.08)
    assert all(joint_kernels(search, jax.random.key(0), jnp.int32(0)).values())
    assert not any(joint_kernels(search, jax.random.key(0), jnp.int32(4)).values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"policy": "fisher"},
            "policy='fisher': it scores formats alone, and stage1_block1.width is searched too: expected "
            "policy='reinforce', which samples within the budget",
        ),
        ({"clip.source": "profiled"}, "clip.source='profiled': expected 'precomputed'"),
        ({"init_from": "x.safetensors"}, "init_from='x.safetensors': with an architecture to search"),
        ({"architecture": {"depths": (1, 2)}}, r"architecture: depths=\(1, 2\): .*unexpected keyword"),
        (
            {"model": {"name": "cifar_resnet"}},
            r"architecture: model 'cifar_resnet' has none to search \(.*\); expected one of mobilenetv2",
        ),
    ],
)
def test_what_cannot_be_searched_is_refused(changes, message):
    config = make_config()
    for key, value in changes.items():
        if isinstance(value, dict):
            config[key] = ConfigDict(value)
        else:
            config.update_from_flattened_dict({key: value})
    with pytest.raises(ValueError, match=message):
        prepare_experiment(config)


def test_rules_pin_decisions_of_the_architecture(tmp_path):
    """The search has what they leave, and its budget stays relative to the network that the family is made from."""
    config = make_config()
    config.target = 3.0
    whole = prepare_experiment(config)
    config.rules = ("stem: int8", r"\.width: 0.5", r"\.kernel: 3,5", "head: ignore")
    some = prepare_experiment(config)
    options = {decision.name: decision.options for decision in some.plan.space.decisions}
    assert options["stage1_block1.width"] == ("0.5",)
    assert options["stage1_block1.kernel"] == ("3", "5")
    assert some.search.family.largest.widths == (0.5,)
    assert [layer for layer in whole.plan.base_workload if layer.path != "head/conv"] == [*some.plan.base_workload]
    baseline = some.plan.uniform_genome("int4")
    assert some.plan.space.decode(baseline)["stage1_block1.width"] == "0.5"
    # A genome file is of the same network, whether it was found under rules or not.
    named = some.plan.named(baseline)
    assert named.architecture == {"widths": [0.5], "kernels": [3]}
    write_genome(tmp_path / "genome.json", named)
    config.update({"policy": "fixed", "genome": str(tmp_path / "genome.json")})
    assert prepare_experiment(config).trials[0].genome.tolist() == baseline.tolist()
    found = found_network.experiment_of(some, tmp_path / "genome.json")
    assert found.config.rules == ("stem: int8", "head: ignore")
    price = pricing.price_exactly(found.search.budgets[0].table, found.trials[0].genome)
    assert price == pricing.price_exactly(some.search.budgets[0].table, baseline)
    assert found.search.budgets[0].target == some.search.budgets[0].target
    config.rules = (r"\.width: 1", "head: ignore", "stem: int8")
    with pytest.raises(ValueError, match=r"genome=.*stage1_block1\.width: no option '0\.5', expected one of 1"):
        prepare_experiment(config)


def test_where_rules_pin_the_whole_architecture_formats_are_searched_by_any_policy():
    config = make_config()
    config.policy, config.rules, config.target = "fisher", ("width|kernel: 1.5",), 2.0
    with pytest.raises(
        ValueError, match=r"rule 'width\|kernel: 1.5': stage1_block1.kernel has no option 1.5: expected 3, 5"
    ):
        prepare_experiment(config)
    config.rules = ("width: 1.5", "kernel: 5")
    search = prepare_experiment(config).search
    assert not search.relative_costs.is_joint
    config.architecture = ConfigDict()
    with pytest.raises(ValueError, match=r"rule .width: 1\.5.: no architecture is searched"):
        prepare_experiment(config)
