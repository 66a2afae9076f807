"""APQ from end to end, in as few steps as there can be."""

import contextlib
import dataclasses
import importlib
import io
import itertools
import json
import pathlib
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from apq_jax import architectures, supernet
from apq_jax.architecture_space import Stage
from apq_jax.within_budgets import BudgetError
from aqt_like import interception
from configs import apq_common, apq_digits
from hwcost import pricing, workload
from hwcost.genome_file import read_genome
from launch import data, export, report
from launch.apq import evolve, finish, fit_predictor, measure_records, train_supernet
from launch.apq.pipeline import RECORD_FILES, SEARCH, SUMMARY, prepare_pipeline
from launch.journal import Journal, JournalError, read_journal
from launch.reports import apq_page
from launch.training import found_network, given_genome, loop
from launch.training.budgets import BudgetSettingError
from launch.training.experiment import prepare_experiment
from launch.training.finished import initial_state, read_experiment
from launch.training.progress import read_metrics
from launch.training.settings import ConfigError
from tests.launch.conftest import make_tiny_config

ROOT = pathlib.Path(__file__).parents[3]
STEPS = (
    train_supernet.run,
    measure_records.run,
    fit_predictor.run,
    evolve.run,
    finish.run,
)


def budget(cost, target, target_unit="absolute"):
    return {"cost": cost, "target": target, "target_unit": target_unit}


@pytest.fixture(scope="module", autouse=True)
def tiny_space():
    with pytest.MonkeyPatch.context() as patch:
        tiny = dataclasses.replace(architectures.find("digits"), stages=(Stage(8, 1, 1, 2),))
        patch.setitem(architectures.SPACES, "tiny", tiny)
        yield


def make_config():
    config = apq_digits.get_config()
    config.space = "tiny"
    config.data.valid_examples = 200
    config.supernet.update({"epochs": 0.2, "batch_size": 32, "checkpoint_every": 2})
    config.records.update(
        {"float": 20, "quantized": 6, "policies": 2, "batch_size": 64, "calibration_batches": 1, "fine_tuning_steps": 1}
    )
    config.predictor.update({"hidden": 8, "steps": 20, "held_out": 2, "counts": (2,)})
    config.search.update({"budgets": apq_common.one_each("bitfusion_latency", [0.0105]), "generations": 5})
    config.finish.update({"epochs": 0.04, "batch_size": 32, "valid_batch_size": 64, "recalibration_batches": 1})
    return config


@pytest.fixture
def config():
    return make_config()


def run(config, workdir, steps=STEPS):
    pipeline = prepare(config, workdir)
    for step in steps:
        step(pipeline)
    return pipeline


def prepare(config, workdir, budgets=()):
    pipeline = prepare_pipeline(config, workdir, Console(quiet=True), budgets)
    pipeline.claim()
    return pipeline


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The directory of a finished experiment; not to be written to."""
    directory = tmp_path_factory.mktemp("finished") / "run"
    run(make_config(), directory)
    return directory


@pytest.fixture
def workdir(finished, tmp_path):
    """A copy of it."""
    return shutil.copytree(finished, tmp_path / "copy")


def test_all_steps_and_their_report(finished):
    summary = json.loads((finished / SUMMARY).read_text())
    assert len(summary["networks"]) == 1
    for network in summary["networks"]:
        directory = finished / "found" / network["name"]
        run_summary = json.loads((directory / "run" / "summary.json").read_text())
        # The price that was searched by is that of the network cut out.
        assert run_summary["cost"] == pytest.approx(network["costs"]["bitfusion_latency"], rel=1e-9)
        assert run_summary["cost"] <= network["budget"]["bitfusion_latency"]
        assert set(network["costs"]) == {"bitfusion_latency", "bitfusion_energy", "bit_operations"}
        formats = {layer["path"]: layer["format"] for layer in run_summary["layers"]}
        choices = network["choices"]
        bits = {choices[f"stage1_block1.pointwise_{kind}"] for kind in ("weights", "inputs")}
        assert set(formats["stage1_block1/expand/conv"].split("/")) == bits
        assert formats["stem/conv"] == formats["classifier"] == "int8"
        assert network["accuracy"] == run_summary["accuracy"]
        assert (run_summary["kind"], run_summary["name"]) == ("fixed", f"{network['name']}/genome.json")
        # It was trained as a part of the largest network, under its own budget, in one compiled step.
        assert run_summary["search_step_compilations"] == 1
        lines = read_metrics(directory / "run" / "metrics.jsonl")
        for key in ("cost", "relative_cost"):
            assert [line[key] for line in lines] == pytest.approx([run_summary[key]] * len(lines))
        # One file says what was searched, what it means for each layer, and what builds the network.
        named = read_genome(directory / "genome.json")
        assert named.choices == choices
        assert {path: layer.format for path, layer in named.layers.items()} == formats
        space = architectures.find("tiny")
        assert named.architecture == space.settings(space.search_space.encode(choices))
    for point in summary["predictor"]["quantized"]:
        each = point["transferred"]["pairwise_of_each"]
        assert point["transferred"]["pairwise"] == pytest.approx(np.mean(each))


def test_a_network_found_is_exported(finished, tmp_path, capsys):
    pytest.importorskip("onnx", reason="needs requirements-devices.txt")
    [found] = (finished / "found").iterdir()
    export.main([str(found / "run"), "--to=onnx", "--batch=64", f"--out={tmp_path}"])
    assert "0 of 360 decisions differ" in capsys.readouterr().out


def test_a_network_found_is_trained_by_the_loop_of_fliqs_whatever_its_config_says_of_a_model(finished):
    summary = json.loads((finished / SUMMARY).read_text())
    (network,) = summary["networks"]
    file = finished / "found" / network["name"] / "genome.json"
    config = make_tiny_config()
    config.update({"policy": "fixed", "genome": str(file), "baselines": ("int4",), "cost": "bitfusion_latency"})
    experiment = prepare_experiment(config)
    found = read_genome(file)
    assert experiment.config.model.to_dict() == found.architecture
    assert given_genome.remark(config, experiment.config).startswith("network: block_network as told by /")
    assert given_genome.remark(config, config) == ""
    genome = experiment.trials[0].genome
    assert experiment.plan.layer_formats(genome) == {path: layer.format for path, layer in found.layers.items()}
    price = pricing.price_exactly(experiment.search.budgets[0].table, genome)
    assert price == pytest.approx(network["costs"]["bitfusion_latency"], rel=1e-9)
    # Its own genome file is as good as that of APQ.
    own = finished / "found" / network["name"] / "run" / "genome.json"
    config.genome = str(own)
    assert prepare_experiment(config).trials[0].genome.tolist() == genome.tolist()
    assert read_genome(own).architecture == found.architecture


def test_the_report(workdir):
    page = apq_page.write(workdir).read_text()
    for text in ("Found networks", "Predictors", "Accuracy against bitfusion latency", "Accuracy against bit operat"):
        assert text in page
    apq_page.print_table(json.loads((workdir / SUMMARY).read_text()), Console(quiet=True))


def test_the_report_shows_baselines_beside_the_joint_search(finished, tmp_path):
    summary = json.loads((finished / SUMMARY).read_text())
    (network,) = summary["networks"]
    summary["networks"] += [network | {"way": way} for way in ("from_scratch", "int4")]
    (tmp_path / SUMMARY).write_text(json.dumps(summary))
    assert [row["searched"] for row in apq_page.rows(summary)] == [
        "all together",
        "without transfer",
        "int4 in all blocks",
    ]
    page = apq_page.write(tmp_path).read_text()
    assert "Ways of searching, bitfusion energy" in page
    assert "1 network: " in page


def test_networks_trained_together_begin_and_end_as_those_cut_out(copied):
    """Before training, too, the largest network under a genome is the network of the genome."""
    (network,) = copied.read(SEARCH)["found"]
    name = finish.network_name(network)
    place = copied.workdir / "found" / name
    own = prepare_experiment(finish._finishing_config(copied, network["budget"], place), copied.source)
    state = train_supernet.read_supernet(copied)
    largest = finish._joined(copied, {name: network}, {name: own}, state)
    (trial,) = largest.trials
    weights, batch_stats = largest.weights
    shapes = jax.eval_shape(lambda: initial_state(largest, trial))
    begun = shapes._replace(
        params=weights,
        batch_stats=batch_stats,
        calibration=interception.empty_calibration(largest.search.paths),
        clip_multiples=largest.clip_multiples,
    )
    cut = found_network.cut_out(largest, begun, trial.genome, begun)
    genome = copied.space.search_space.encode(network["choices"])
    _, variables = supernet.cut_out(copied.space, state.params, state.batch_stats, genome)
    jax.tree.map(
        np.testing.assert_array_equal, (cut.params, cut.batch_stats), (variables["params"], variables["batch_stats"])
    )
    jax.tree.map(np.testing.assert_array_equal, cut.clip_multiples, own.clip_multiples)
    formats = largest.plan.layer_formats(trial.genome)
    assert own.plan.layer_formats(own.trials[0].genome).items() <= formats.items()


def test_the_report_command_writes_the_page_and_the_table(finished, tmp_path, capsys):
    page, table = tmp_path / "page.html", tmp_path / "table.json"
    report.main([str(finished), f"--out={page}", f"--json={table}"])
    (network,) = json.loads((finished / SUMMARY).read_text())["networks"]
    (row,) = json.loads(table.read_text())
    assert (row["budget"], row["test"]) == ("0.0105", f"{100 * network['accuracy']:.2f} %")
    printed = capsys.readouterr().out
    assert all(text in printed for text in (row["budget"], row["predicted"], row["test"], f"report: {page}"))
    assert "<h2>Found networks</h2>" in page.read_text()


def test_the_report_command_reads_summaries_of_earlier_versions(tmp_path):
    """Their summary names no kind."""
    stored = ROOT / "tests" / "golden" / "earlier_apq_summary.json"
    assert "kind" not in json.loads(stored.read_text())
    shutil.copy(stored, tmp_path / SUMMARY)
    report.main([str(tmp_path)])
    assert "<h2>Evolution</h2>" in (tmp_path / "report.html").read_text()


def test_the_report_command_refuses_an_experiment_among_runs(finished):
    run_directory = next((finished / "found").iterdir()) / "run"
    with pytest.raises(
        SystemExit, match=f"error: {finished} is an APQ experiment: expected it alone, got 2 directories"
    ):
        report.main([str(run_directory), str(finished)])
    assert not (run_directory / "report.html").exists()


def test_what_is_done_is_not_done_again_and_another_search_needs_nothing_else(config, workdir):
    before = (workdir / SUMMARY).read_text()
    run(config, workdir)
    assert (workdir / SUMMARY).read_text() == before
    # Sets may be of unlike costs; baselines are searched for the sets that they can meet.
    sets = [(budget("bitfusion_latency", 0.011), budget("weight_bytes", 9000)), budget("bitfusion_energy", 0.02)]
    config.search.baselines = ("from_scratch", "int4")
    other = prepare(config, workdir, [repr(each) for each in sets])
    evolve.run(other)
    search = other.read(SEARCH)
    found, ways = search["found"], ["joint", "from_scratch", "int4"]
    assert [(each["way"], list(each["budget"].values())) for each in found] == [
        (way, limits) for way in ways for limits in ([0.011, 9000], [0.02])
    ]
    assert all(each["costs"][name] <= limit for each in found for name, limit in each["budget"].items())
    for network in found[-2:]:
        genome = other.space.search_space.encode(network["choices"])
        choice = other.space.format_choice(jnp.asarray(genome))
        names = {other.space.formats[index].name for index in choice[3:6]}
        assert names == {"int4"}
    assert {"predictor", "predictor from_scratch"} <= set(search["inputs"])
    config.search.baselines = ()

    both = (budget("bitfusion_latency", 0.014), budget("weight_bytes", 9000))
    config.search.update({"selection": "nsga2", "budgets": (both,)})
    evolve.run(prepare(config, workdir))
    front = other.read(SEARCH)["found"]
    assert len(front) > 1
    for one, next_one in itertools.pairwise(front):
        assert one["costs"]["bitfusion_latency"] <= next_one["costs"]["bitfusion_latency"] <= 0.014
    names = {finish.network_name(network) for network in front}
    assert len(names) == len(front)
    assert all(name.startswith("bitfusion_latency-0.014-weight_bytes-9000-") for name in names)


def test_records_go_on_after_a_kill_and_more_may_be_asked_for(config, workdir):
    pipeline = prepare(config, workdir)
    path = workdir / RECORD_FILES["quantized"]
    whole, lines = read_journal(path), path.read_text().splitlines(keepends=True)
    # One line removed, one edited, half of the last.
    path.write_text("".join([*lines[:2], lines[3], lines[4].replace("accuracy", "accurate"), lines[5], lines[6][:-40]]))
    with pytest.raises(JournalError, match=r"records-quantized\.jsonl, line 4: its checksum is another \(and 1 more\)"):
        measure_records.read_records(pipeline, "quantized")
    measure_records.run(pipeline)
    assert read_journal(path) == whole
    whole = path.read_text()

    pipeline.stop.signal_number = signal.SIGINT  # after each record, nothing is lost
    with pytest.raises(loop.Stopped) as stopped:
        measure_records.run(pipeline, counts={"float": 25})
    assert stopped.value.code == 130
    pipeline.stop.signal_number = None
    measure_records.run(pipeline, counts={"float": 21})
    assert path.read_text() == whole
    assert len((workdir / RECORD_FILES["float"]).read_text().splitlines()) == 1 + 21
    before = pipeline.read("predictor/summary.json")
    fit_predictor.run(pipeline)
    after = pipeline.read("predictor/summary.json")
    assert (before["records"], after["records"]) == ({"float": 20, "quantized": 6}, {"float": 21, "quantized": 6})
    searched = (workdir / SEARCH).read_text()
    evolve.run(pipeline)
    assert (workdir / SEARCH).read_text() != searched


def test_damage_and_too_few_records_are_told(config, workdir):
    pipeline = prepare(config, workdir, [repr(budget("weight_bytes", 9000))])
    (workdir / fit_predictor.FILES["quantized"]).write_bytes(b"damaged")
    with pytest.raises(ConfigError, match=r"cannot read the predictor .*quantized.safetensors"):
        evolve.run(pipeline)
    path = workdir / RECORD_FILES["quantized"]
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))
    with pytest.raises(ConfigError, match=r"2 quantised records: expected more than predictor.held_out=2"):
        fit_predictor.run(pipeline)


def rewrite(path, change):
    """Changes a JSON document, or the records of a journal, whose lines keep their checksums."""
    if path.suffix == ".json":
        document = json.loads(path.read_text())
        change(document)
        path.write_text(json.dumps(document))
        return
    head, entries = read_journal(path)
    path.unlink()
    change(entries)
    with Journal(path, head, option="") as journal:
        for entry in entries:
            journal.append(entry)


def other_network(document):
    document["state_sha256"] = "another"


def other_inputs(document):
    document["inputs"] = dict.fromkeys(document["inputs"], "another")


def other_file(document):
    document["files"] = dict.fromkeys(document["files"], "another")


def other_records(entries):
    for entry in entries:
        entry["accuracy"] = 1 - entry["accuracy"]


@pytest.fixture(scope="module")
def copied(finished, tmp_path_factory):
    """A copy for tests that put back what they change."""
    return prepare(make_config(), shutil.copytree(finished, tmp_path_factory.mktemp("copied") / "run"))


@contextlib.contextmanager
def changed(path, change):
    """Changes a file for a while."""
    before = path.read_bytes()
    rewrite(path, change)
    try:
        yield
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize(
    ("place", "change", "steps", "message"),
    [
        (
            "records-float.jsonl",
            other_records,
            STEPS[2:],
            r"predictor/summary.json was .*: float records had the digest",
        ),
        (
            "records-quantized.jsonl",
            other_records,
            STEPS[2:],
            r"predictor/summary.json .*: quantized records had the di",
        ),
        ("supernet/summary.json", other_network, STEPS[1:], r"records-float.jsonl is of .*, not of .*another"),
        (
            "predictor/summary.json",
            other_file,
            STEPS[3:],
            r"quantized.safetensors: its digest was another, and is \w{64}",
        ),
        (
            "search.json",
            other_inputs,
            STEPS[3:],
            r"search.json was made from other inputs: .*predictor had the digest ano",
        ),
        (
            "search.json",
            other_inputs,
            STEPS[3:4],
            r"search.json was made from .*: costs bitfusion_latency had the digest a",
        ),
        (
            "summary.json",
            other_inputs,
            STEPS[4:],
            r"once-for-all network had the digest another, and has \w{64} now.*Put",
        ),
    ],
)
def test_what_was_made_from_other_inputs_is_refused(copied, place, change, steps, message):
    before = {file: file.read_bytes() for file in copied.workdir.rglob("*.json*")}
    for step in steps:
        with changed(copied.workdir / place, change), pytest.raises((ConfigError, JournalError), match=message):
            step(copied)
    assert {file: file.read_bytes() for file in copied.workdir.rglob("*.json*")} == before


def test_networks_cut_out_of_another_one_are_refused(config, workdir):
    (workdir / SUMMARY).unlink()
    (place,) = workdir.glob("found/*/inputs.json")
    rewrite(place, lambda document: document.update({"once-for-all network": "another"}))
    with pytest.raises(ConfigError, match=r"once-for-all network had the digest another, .* or remove .*found/"):
        run(config, workdir, STEPS[4:])


def test_other_data_are_refused(config, workdir):
    (workdir / "inputs.json").write_text('{"data": "images/1.0.0 0"}')
    with pytest.raises(ConfigError, match=r"data had the digest images/1\.0\.0 0, and has \(none\) now"):
        prepare(config, workdir)


def test_experiments_of_earlier_versions_are_read_and_told(config, workdir):
    (workdir / "inputs.json").unlink()
    for place in ("predictor/summary.json", SEARCH, SUMMARY):
        rewrite(workdir / place, lambda document: document.pop("inputs"))
    rewrite(workdir / SUMMARY, lambda document: document["search"].pop("inputs"))
    console = Console(file=io.StringIO(), width=300)
    pipeline = prepare_pipeline(config, workdir, console)
    pipeline.claim()
    for step in STEPS:
        step(pipeline)
    said = console.file.getvalue()
    assert said.count("already complete") == 6
    for place in (workdir, workdir / "predictor/summary.json", workdir / SEARCH, workdir / SUMMARY):
        assert f"{place} tells no digests of its inputs" in said


def test_a_work_directory_can_be_moved(config, finished, workdir, tmp_path):
    moved = shutil.move(workdir, tmp_path / "elsewhere" / "moved")
    before = json.loads((moved / SUMMARY).read_text())
    (moved / SUMMARY).unlink()
    (stored,) = moved.glob("found/*/run/config.json")
    stored.write_text(stored.read_text().replace(str(finished), "/nowhere"))  # as it is where nothing was left behind
    run(config, moved)
    assert json.loads((moved / SUMMARY).read_text()) == before
    read = read_experiment(stored.parent).config
    assert read.genome == str(stored.parents[1] / "genome.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entries: entries[3].update(genome=entries[4]["genome"]), "it is not of the genome that was drawn"),
        (lambda entries: entries[3].update(accuracy=1.5), r"accuracy 1\.5: expected a share"),
        (lambda entries: entries[3].pop("accuracy"), "accuracy None: expected a share"),
        (lambda entries: entries[3].update(genome="0"), "it is not of the genome"),
        (lambda entries: entries.pop(3), "it is not of the genome"),
    ],
)  # fmt: skip
def test_records_are_those_of_the_genomes_drawn(copied, change, message):
    with changed(copied.workdir / RECORD_FILES["float"], change):
        for step in (measure_records, fit_predictor):
            with pytest.raises(JournalError, match=rf"records-float\.jsonl, record 3: {message}"):
                step.run(copied)


def test_the_once_for_all_network_is_that_of_its_summary(config, workdir):
    rewrite(workdir / "supernet" / "summary.json", other_network)
    with pytest.raises(
        ConfigError, match=r"checkpoint of step \d+ in .*supernet is not that of its summary.json: its di"
    ):
        train_supernet.read_supernet(prepare(config, workdir))


def test_the_once_for_all_network_goes_on_after_a_stop(config, finished, tmp_path, monkeypatch):
    uninterrupted = json.loads((finished / "supernet" / "summary.json").read_text())
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
        ({"search.budgets": ("bitfusion_latency=8",)}, BudgetSettingError, r"'bitfusion_latency=8': expected {'cost'"),
        ({"search.budgets": (budget("watts", 1),)}, ValueError, "cost 'watts'"),
        ({"search.budgets": (budget("weight_bytes", 1),)}, BudgetError, "no genome is within 1, reachable is"),
        ({"search.baselines": ("int6",)}, ConfigError, "search.baselines='int6': expected some of from_scratch, int2,"),
        ({"search.baselines": ("int8",)}, ConfigError, "'int8': no network with int8 in all blocks meets a set of bud"),
        ({"search.baselines": ("int2", "int2")}, ConfigError, "search.baselines=.*: one is there twice"),
        ({"quantizer": "best"}, ConfigError, "quantizer='best': expected one of gaussian, least_divergence"),
        ({"quantizer": "least_divergence"}, ConfigError, "finish.together=True: expected False with quantizer='least"),
    ],
)
def test_bad_settings_are_told_before_anything_runs(config, tmp_path, changes, error, message):
    for key, value in changes.items():
        config.update_from_flattened_dict({key: value})
    with pytest.raises(error, match=message):
        prepare_pipeline(config, tmp_path / "new", Console(quiet=True))
    assert not (tmp_path / "new").exists()


def counted_from_one():
    split = data.Split(np.zeros((2000, 8, 8, 1), np.float32), np.arange(2000) % 10 + 1)
    return data.Arrays(split, split, 10)


def test_own_data_are_checked_before_anything_runs(config, tmp_path):
    config.data.name = f"{__name__}:counted_from_one"
    with pytest.raises(data.DataError, match="train: the label of example 9 is 10: expected 0 … 9"):
        prepare_pipeline(config, tmp_path / "new", Console(quiet=True))


def test_a_folder_of_data_can_be_named_on_the_command_line():
    for name in ("apq_digits", "apq_cifar10", "apq_imagenet"):
        config = importlib.import_module(f"configs.{name}").get_config()
        assert config.data.get_type("data_dir") is str
        config.data.data_dir = "somewhere"


def test_steps_out_of_order_are_told(config, tmp_path):
    pipeline = prepare(config, tmp_path)
    for step in STEPS[1:]:
        with pytest.raises((ConfigError, JournalError), match=r"run the steps before|is missing"):
            step(pipeline)


@pytest.mark.parametrize("name", ["apq_digits", "apq_cifar10", "apq_imagenet"])
def test_configs_name_spaces_and_budgets_that_there_are(name):
    config = importlib.import_module(f"configs.{name}").get_config()
    space = architectures.find(config.space, config.image_size)
    assert set(config.supernet.stages) == {"full", "kernel", "channels", "depth"}
    assert space.blocks
    assert np.isfinite(config.supernet.epochs)


def test_all_budgets_of_a_set_are_those_of_the_finished_run(config, workdir):
    """A unit that is a format stands for that format in all layers of the largest network.

    This network is cut out first, and has a compiled step of its own.
    """
    rewrite(workdir / "config.json", lambda stored: stored["finish"].update(together=False))
    config.finish.together = False
    sets = (budget("bitfusion_latency", 2.0, "int8"), budget("weight_bytes", 1.0, "int8"))
    pipeline = prepare(config, workdir, [repr(sets)])
    layers = workload.trace(pipeline.space.family.largest, (8, 8, 1), train=False)
    assert pipeline.budgets[0]["weight_bytes"] == sum(layer.weights for layer in layers)
    evolve.run(pipeline)
    finish.run(pipeline)
    (network,) = pipeline.read(SUMMARY)["networks"]
    run_summary = json.loads((workdir / "found" / network["name"] / "run" / "summary.json").read_text())
    assert {each["name"]: each["target"] for each in run_summary["budgets"]} == pipeline.budgets[0]
    read = read_experiment(workdir / "found" / network["name"] / "run").config
    assert read.init_from == str(workdir / "found" / network["name"] / "initial.safetensors")
