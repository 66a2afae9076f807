"""Runs from end to end on the digits: what is written, and what happens when they are disturbed."""

import dataclasses
import hashlib
import io
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from rich.console import Console
from safetensors.numpy import save_file

import aqt_like
from aqt_like.formats import format_space
from aqt_like.frozen_network import FrozenNetwork
from configs import fliqs_cifar10_resnet8, fliqs_criteo
from fliqs_jax import models
from fliqs_jax.models import pretrained
from fliqs_jax.search import SearchState
from hwcost import measured_tables
from launch import data
from launch.data import images
from launch.data.images import TfdsImages
from launch.data.stream import Stream
from launch.reports import fliqs_page
from launch.training import dry_run, finished, loop, progress, runs, trial_run
from launch.training.experiment import prepare_experiment
from launch.training.interruption import stop_on_signals
from launch.training.run_directory import claim_directory, read_inputs
from launch.training.settings import ConfigError
from tests import tiny_network
from tests.launch.conftest import make_tiny_config, run_in

ROOT = pathlib.Path(__file__).parents[3]
STEPS, LAYERS = 16, 4


def summary_of(directory):
    return json.loads((directory / "summary.json").read_text())


def final_digest(directory):
    """Digest over the whole search state after the last step."""
    return summary_of(directory)["state_sha256"]


def test_a_run_and_its_baselines_write_all_they_promise(tiny_config, run_experiment):
    tiny_config.baselines = ("int4", "bf16")
    directories, _ = run_experiment(tiny_config)
    assert [d.name for d in directories] == ["run", "uniform-int4", "uniform-bf16"]
    names = {"summary.json", "genome.json", "metrics.jsonl", "config.json", "checkpoints"}
    names |= {"network.safetensors", "weights.safetensors"}
    for directory in directories:
        assert names <= {path.name for path in directory.iterdir()}
        summary = summary_of(directory)
        assert list(summary)[:4] == ["accuracy", "cost", "target", "genome"]
        assert 0 < summary["accuracy"] <= 1
        assert summary["cost"] == sum(layer["bits"] ** 2 * layer["macs"] for layer in summary["layers"])
        assert summary["outside"] == {"macs": 0, "share": 0, "places": []}
        # One compilation for the whole experiment: all phases, all trials.
        assert summary["search_step_compilations"] == 1
        lines = progress.read_metrics(directory / "metrics.jsonl")
        assert lines[-1]["step"] == STEPS
        assert {"loss", "train_quality", "valid_quality", "relative_cost", "reward", "entropy", "policy"} <= set(
            lines[0]
        )
    assert [summary_of(directory)["kind"] for directory in directories] == ["searched", "uniform", "uniform"]
    assert {layer["format"] for layer in summary_of(directories[1])["layers"]} == {"int4"}
    assert summary_of(directories[2])["relative_cost"] == pytest.approx(16 / 1.15)
    page = fliqs_page.write(directories, directories[0] / "report.html").read_text()
    for text in ("FLIQS int_s on digits", "uniform bf16", "s1.1/shortcut", "The policy over time"):
        assert text in page
    assert "http://" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    )
    assert "<script" not in page and "src=" not in page


def test_a_config_is_checked_and_estimated_without_a_trace(tiny_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_config.baselines, tiny_config.rules = ("int4",), ("shortcut: ignore",)
    console = Console(file=io.StringIO(), width=200)
    prepared = prepare_experiment(tiny_config)
    dry_run.check(prepared, console)
    lines = dict(line.split(maxsplit=1) for line in console.file.getvalue().splitlines())
    assert lines["layers"].startswith(f"{LAYERS - 1}, ")
    assert lines["outside"] == prepared.survey.remark()
    assert lines["outside"].endswith("stay in float, unpriced: stage1_block1/shortcut (2,048)")
    assert lines["networks"] == "2: FLIQS int_s, uniform int4"
    assert lines["steps"] == f"{STEPS} each"
    assert re.match(r"about \d+ MB", lines["memory"])
    assert re.match(r"about \d+:\d\d: .* ms a step", lines["time"])
    assert list(tmp_path.iterdir()) == []


def test_a_finished_run_is_not_run_again(tiny_config, run_experiment, uninterrupted):
    before = (uninterrupted / "summary.json").stat().st_mtime_ns
    _, said = run_experiment(tiny_config, uninterrupted)
    assert "already complete" in said
    assert (uninterrupted / "summary.json").stat().st_mtime_ns == before


@dataclasses.dataclass
class StopAfter:
    """A request to stop that arrives after so many steps."""

    steps: int
    signal_number: int = signal.SIGTERM

    def __bool__(self):
        self.steps -= 1
        return self.steps <= 0


def test_stopping_checkpoints_and_resuming_equals_never_stopping(tiny_config, run_experiment, uninterrupted, tmp_path):
    workdir = tmp_path / "stopped"
    with pytest.raises(loop.Stopped) as stopped:
        run_experiment(tiny_config, workdir, stop=StopAfter(6))
    assert stopped.value.code == 128 + signal.SIGTERM
    assert not (workdir / "summary.json").exists()
    _, said = run_experiment(tiny_config, workdir)
    assert "going on from step" in said
    assert final_digest(workdir) == final_digest(uninterrupted)
    resumed, whole = summary_of(workdir), summary_of(uninterrupted)
    for key in ("accuracy", "accuracy_before_recalibration", "genome", "policy_entropy", "validation_accuracy"):
        assert resumed[key] == whole[key]
    steps = [line["step"] for line in progress.read_metrics(workdir / "metrics.jsonl")]
    assert steps == sorted(set(steps))
    assert steps[-1] == STEPS


def command(workdir):
    options = {
        "model": {"name": tiny_network.NAME}, "epochs": 2, "baselines": "()", "log_every": 3, "checkpoint_every": 4,
        "recalibration_batches": 2, "random_search.evaluated": 2, "formats": "int_s", "target": 1.15,
        "target_unit": "int4", "policy": "reinforce",
    }  # fmt: skip
    return [
        sys.executable, "-m", "launch.fliqs", "--config=configs/fliqs_digits.py", f"--workdir={workdir}",
        *(f"--config.{key}={value}" for key, value in options.items()),
    ]  # fmt: skip


def test_killed_at_any_moment_the_same_run_ends_bit_identical(tiny_config, run_experiment, uninterrupted, tmp_path):
    """Killed twice: as it begins to write metrics, and, when it goes on, after its first checkpoint.

    A third process, this one, ends it; its config is that of the command, or the directory would be refused.
    """
    workdir = tmp_path / "killed"
    for after in ("metrics.jsonl", "checkpoints/4"):
        process = subprocess.Popen(command(workdir), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while not (workdir / after).exists():
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.001)
        process.kill()
        process.wait()
        assert not (workdir / "summary.json").exists()
    _, said = run_experiment(tiny_config, workdir)
    assert "going on from step" in said
    assert final_digest(workdir) == final_digest(uninterrupted)
    for name in ("network.safetensors", "weights.safetensors"):
        assert (workdir / name).read_bytes() == (uninterrupted / name).read_bytes()
    for key in ("accuracy", "genome", "policy_entropy"):
        assert summary_of(workdir)[key] == summary_of(uninterrupted)[key]


def test_the_summary_is_of_the_network_in_the_file(uninterrupted):
    """Read by a user of the library, who knows the model but no config."""
    network, variables = aqt_like.load_network(uninterrupted / "network.safetensors", tiny_network.make_network(10))
    about = FrozenNetwork.load(uninterrupted / "network.safetensors").about
    _, test = images.Digits(make_tiny_config().data).read()
    mean, deviation = (np.asarray(about["data"]["normalization"][key], np.float32) for key in ("mean", "deviation"))
    logits = network.apply(variables, (test.inputs.astype(np.float32) - mean) / deviation, train=False)
    summary = summary_of(uninterrupted)
    assert np.mean(np.argmax(logits, axis=1) == test.labels) == pytest.approx(summary["accuracy"], abs=1e-6)
    assert network.formats == {layer["path"]: layer["format"] for layer in summary["layers"]}
    assert about["data"]["class_names"] == list("0123456789")
    assert about["genome"] == json.loads((uninterrupted / "genome.json").read_text())
    weights = finished.read_weights(uninterrupted, finished.read_experiment(uninterrupted))
    jax.tree.map(np.testing.assert_array_equal, weights.batch_stats, variables["batch_stats"])


def damage(checkpoint):
    """Cuts the largest file of a checkpoint short."""
    path = max((p for p in checkpoint.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    path.write_bytes(path.read_bytes()[:-1])


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tiny_config, run_experiment, uninterrupted, tmp_path):
    workdir = tmp_path / "damaged"
    with pytest.raises(loop.Stopped):
        run_experiment(tiny_config, workdir, stop=StopAfter(9))
    newest = max((p for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()), key=lambda p: int(p.name))
    damage(newest)
    _, said = run_experiment(tiny_config, workdir)
    assert f"checkpoint of step {newest.name} is damaged" in said
    assert "trying the one before" in said
    assert "going on from step 4" in said or "going on from step 8" in said
    assert final_digest(workdir) == final_digest(uninterrupted)


@pytest.fixture
def copy(uninterrupted, tmp_path):
    """A copy of a finished run, in a work directory of its own."""
    return shutil.copytree(uninterrupted, tmp_path / "found" / "x" / "run")


def rewrite(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_finished_run_tells_what_it_was_made_from_and_on_how_many_devices(copy, tiny_config, run_experiment):
    """It may be copied; without digests it is told to be of an earlier version."""
    summary = summary_of(copy)
    assert summary["inputs"] == read_inputs(copy)
    assert summary["inputs"].keys() == {"code of model.name"}
    assert summary["bit_identical_on"] == [summary["device"]] == ["1 × cpu"]
    _, said = run_experiment(tiny_config, copy)
    assert "already complete" in said and "digest" not in said
    rewrite(copy / "inputs.json", **{"code of model.name": "0"})
    with pytest.raises(ConfigError, match=r"code of model.name had the digest 0, and has"):
        run_experiment(tiny_config, copy)
    (copy / "inputs.json").unlink()
    rewrite(copy / "summary.json", inputs=None)
    _, said = run_experiment(tiny_config, copy)
    assert "already complete" in said and "tells no digests of its inputs" in said


def test_a_run_does_not_go_on_with_other_code(copy, tiny_config, run_experiment):
    (copy / "summary.json").unlink()
    rewrite(copy / "inputs.json", **{"code of model.name": "0"})
    before = sorted(path.name for path in (copy / "checkpoints").iterdir())
    with pytest.raises(ConfigError, match=r"code of model.name had the digest 0, and has"):
        run_experiment(tiny_config, copy)
    assert sorted(path.name for path in (copy / "checkpoints").iterdir()) == before


def test_files_of_a_finished_run_are_found_beside_it_where_it_was_moved(copy):
    genome = copy.parent / "genome.json"
    shutil.copy(copy / "genome.json", genome)
    config = {"policy": "fixed", "genome": "/nowhere/genome.json", "init_from": "/nowhere/initial.safetensors"}
    rewrite(copy / "config.json", **config)
    digest = hashlib.sha256(genome.read_bytes()).hexdigest()
    rewrite(copy / "inputs.json", genome=digest, init_from="0")
    read = finished.read_experiment(copy)
    assert (read.config.genome, read.config.init_from) == (str(genome), "")
    genome.write_text(genome.read_text() + " ")
    rewrite(copy / "config.json", genome=str(genome))
    with pytest.raises(ConfigError, match=rf"genome had the digest {digest}, and has"):
        finished.read_experiment(copy)
    rewrite(copy / "inputs.json", genome=hashlib.sha256(genome.read_bytes()).hexdigest(), data="images/1.0.0 0")
    finished.read_experiment(copy)  # the digits say nothing of their content


def test_nan_loss_stops_with_the_step_and_keeps_the_last_good_checkpoint(tiny_config, run_experiment, tmp_path):
    tiny_config.optimizer.learning_rate = 1e30
    tiny_config.optimizer.warmup_fraction = 0.9
    tiny_config.label_smoothing = 0.1
    with pytest.raises(
        loop.NotFiniteError, match=r"the loss is (nan|inf) at step \d+\. The last good checkpoint is kept"
    ):
        run_experiment(tiny_config)
    assert not (tmp_path / "run" / "summary.json").exists()


def test_a_directory_of_another_config_is_refused_with_the_keys(tiny_config, run_experiment, uninterrupted):
    tiny_config.optimizer.learning_rate = 0.2
    tiny_config.seed = 3
    with pytest.raises(ConfigError, match=r"optimizer.learning_rate is 0.1 there and 0.2 here; seed is 0 there"):
        run_experiment(tiny_config, uninterrupted)
    tiny_config.optimizer.learning_rate, tiny_config.seed = 0.1, 0
    tiny_config.log_every = 5  # how a run is shown may change
    run_experiment(tiny_config, uninterrupted)


def test_a_found_genome_can_be_trained_again(tiny_config, run_experiment, uninterrupted, tmp_path):
    tiny_config.policy = "fixed"
    tiny_config.genome = str(uninterrupted / "genome.json")
    directories, _ = run_experiment(tiny_config, tmp_path / "retrained")
    retrained, whole = summary_of(directories[0]), summary_of(uninterrupted)
    assert retrained["genome"] == whole["genome"]
    assert (retrained["kind"], retrained["name"]) == ("fixed", "run/genome.json")
    tiny_config.formats = ""  # those that the genome names
    alike = prepare_experiment(tiny_config)
    genome = alike.trials[0].genome
    assert alike.plan.layer_formats(genome) == {layer["path"]: layer["format"] for layer in whole["layers"]}
    tiny_config.rules = ("stem: per_tensor",)
    with pytest.raises(ConfigError, match=r"genome=.*stem is to have per_channel weights, but has per_tensor ones"):
        prepare_experiment(tiny_config)


def test_random_search(tiny_config, run_experiment):
    tiny_config.policy = "uniform"
    tiny_config.target = 3.0
    directories, _ = run_experiment(tiny_config)
    summary = summary_of(directories[0])
    assert summary["kind"] == "random_search"
    assert summary["policy_entropy"] == pytest.approx(LAYERS * np.log(3), rel=1e-5)
    assert abs(summary["relative_cost"] - 1) < 0.2


def test_profiled_clipping(tiny_config, run_experiment, uninterrupted, tmp_path):
    tiny_config.clip.source = "profiled"
    directories, _ = run_experiment(tiny_config, tmp_path / "profiled")
    assert final_digest(directories[0]) != final_digest(uninterrupted)


def test_a_space_of_floats_is_searched(tiny_config, run_experiment):
    tiny_config.formats = "fp_l"
    tiny_config.epochs = 0.25
    directories, _ = run_experiment(tiny_config)
    names = {fmt.name for fmt in format_space("fp_l")}
    assert {layer["format"] for layer in summary_of(directories[0])["layers"]} <= names
    fliqs_page.write(directories, directories[0] / "report.html")


def test_cifar10_from_end_to_end(run_experiment, tfds_dir, monkeypatch):
    """With a few of its images: decoding all takes longer than all other tests of runs."""
    decode_all = TfdsImages._decoded

    def decode_some(self, split, records):
        return decode_all(self, split, [records[i] for i in range(6000)])

    monkeypatch.setattr(TfdsImages, "_decoded", decode_some)
    config = fliqs_cifar10_resnet8.get_config()
    config.data.data_dir, config.data.image_size = str(tfds_dir), 8
    config.model = {"name": tiny_network.NAME}
    config.epochs, config.baselines, config.recalibration_batches = 0.05, (), 2
    directories, _ = run_experiment(config)
    summary = summary_of(directories[0])
    assert summary["config"]["data"]["name"] == "cifar10"
    assert 0.05 < summary["accuracy"] < 0.7
    assert progress.read_metrics(directories[0] / "metrics.jsonl")[-1]["step"] == round(0.05 * (45000 // 128))


def test_signals_ask_once_and_then_act_as_usual():
    with stop_on_signals() as stop:
        assert not stop
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop
        assert stop.signal_number == signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_config_directories_are_claimed_atomically(tiny_config, tmp_path):
    claim_directory(tmp_path / "new", tiny_config, {}, say=pytest.fail)
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"config.json", "inputs.json"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda batch, _: batch | {"label": batch["label"][:, None]}, r"train: labels are int32 of shape \[N, 1\]"),
        (
            lambda batch, _: batch | {"label": batch["label"] + 1},
            r"train: the label of example \d+ is 10: expected 0 … 9",
        ),
        (lambda batch, _: batch | {"input": batch["input"].astype(np.float64)}, "train: inputs are float64"),
        (
            lambda batch, split: batch if split != "valid" else {"input": batch["input"]},
            "valid: a batch has only input",
        ),
        (lambda batch, split: batch if split != "test" else None, "test: there is no example with a label"),
    ],
)
def test_data_of_ones_own_are_checked_by_their_first_batches(tiny_config, change, message):
    """Of a source that is not in memory, before anything is compiled."""

    class Changed:
        def __init__(self, dataset):
            self.dataset = dataset

        def train_batches(self, split, **settings):
            return (change(batch, split) for batch in self.dataset.train_batches(split, **settings))

        def eval_batches(self, split, **settings):
            return (
                changed for batch in self.dataset.eval_batches(split, **settings) if (changed := change(batch, split))
            )

    experiment = prepare_experiment(tiny_config)
    with pytest.raises(data.DataError, match=message):
        trial_run.compile_functions(experiment, Changed(trial_run.open_data(experiment)), lambda batch: batch)


def test_a_quality_that_ranks_needs_both_labels_in_the_validation_split(tiny_config):
    labels = np.arange(40) == 7  # one of them, which the seed does not set aside for validation
    split = data.Split(np.zeros((40, 8, 8, 1), np.float32), labels)
    tiny_config.loss, tiny_config.quality = "binary_cross_entropy", "auc"
    tiny_config.update({"batch_size": 4, "valid_batch_size": 4, "target": 3.0})
    tiny_config.data.valid_examples = 10
    experiment = prepare_experiment(tiny_config, source=data.Arrays(split, split, 1))
    with pytest.raises(data.DataError, match="valid: no label is 1: there is nothing to rank"):
        trial_run.open_data(experiment)


def test_a_teacher_changes_what_is_learned_and_has_to_fit(uninterrupted, tiny_config, run_experiment, tmp_path):
    tiny_config.distillation.teacher = str(uninterrupted)
    (directory,), _ = run_experiment(tiny_config, tmp_path / "taught")
    assert summary_of(directory)["search_step_compilations"] == 1
    assert final_digest(directory) != final_digest(uninterrupted)
    tiny_config.distillation.weight = 0.0  # a teacher that is not listened to
    with pytest.raises(loop.Stopped):
        run_experiment(tiny_config, tmp_path / "not-listening", stop=StopAfter(4))
    lines = [progress.read_metrics(d / "metrics.jsonl") for d in (tmp_path / "not-listening", uninterrupted)]
    assert lines[0][0]["loss"] == pytest.approx(lines[1][0]["loss"], rel=1e-5)
    tiny_config.distillation.temperature = 0.0
    with pytest.raises(ConfigError, match=r"distillation.temperature=0.0: expected a number above 0"):
        prepare_experiment(tiny_config)
    tiny_config.distillation.temperature = 1.0
    other = shutil.copytree(uninterrupted, tmp_path / "of another model")
    network = FrozenNetwork.load(other / "network.safetensors")
    dataclasses.replace(network, variables={}).save(other / "network.safetensors")
    elsewhere = shutil.copytree(uninterrupted, tmp_path / "of other data")
    network = FrozenNetwork.load(elsewhere / "network.safetensors")
    about = network.about | {"data": network.about["data"] | {"name": "mine:digits"}}
    dataclasses.replace(network, about=about).save(elsewhere / "network.safetensors")
    for teacher, message in {
        elsewhere: r"was trained on data.name 'mine:digits', here it is 'digits'",
        other: r"the model is not that of .*network.safetensors: these shapes differ: params/classifier/bias is absent",
        uninterrupted / "network.safetensors": "is a file: expected the directory of a run",
        tmp_path / "nobody": "nobody holds no run",
    }.items():
        tiny_config.distillation.teacher = str(teacher)
        with pytest.raises(ConfigError, match=message):
            run_experiment(tiny_config, tmp_path / "taught by" / teacher.name)


def test_what_cannot_be_frozen_is_told_before_it_is_trained(tiny_config, run_experiment, tmp_path):
    tiny_config.model = {"name": "tests.tiny_network:make_dropping_network"}
    with pytest.raises(ValueError, match="stem: its kernel depends on the input of the model"):
        run_experiment(tiny_config)
    assert not (tmp_path / "run" / "checkpoints").exists()


class SplitsOf:
    """A data set of which only the batches of evaluation matter."""

    def __init__(self, **batches):
        self.batches = batches

    def eval_batches(self, split, *, batch_size):
        return iter(self.batches[split])


@pytest.mark.parametrize(
    ("split", "batches", "message"),
    [
        ("valid", [], "the valid split of digits is empty"),
        ("test", [], "the test split of digits is empty"),
        (
            "test",
            [{"input": np.zeros((128, 9, 9, 1), np.float32), "label": np.zeros(128, np.int32)}],
            r"the test split of digits has inputs of float32\[128, 9, 9, 1\] in a batch, expected float32\[128, 8, 8",
        ),
        (
            "test",
            [{"input": np.zeros((128, 8, 8, 1), np.uint8), "label": np.zeros(128, np.int32)}],
            r"has inputs of uint8",
        ),
    ],
)
def test_what_cannot_be_evaluated_is_told_before_it_is_trained(tiny_config, split, batches, message):
    good = {"input": np.zeros((128, 8, 8, 1), np.float32), "label": np.zeros(128, np.int32)}
    dataset = SplitsOf(**{"valid": [good], "test": [good], split: batches})
    with pytest.raises(data.DataError, match=message):
        finished.Networks(prepare_experiment(tiny_config), dataset).check()


def test_weights_of_a_run_are_checked_where_they_are_read(uninterrupted, tiny_config, tmp_path):
    for name, message in {
        "network.safetensors": "is a frozen network, without float weights: use weights.safetensors beside it",
        "weights.safetensors": "its checksum differs",
    }.items():
        contents = bytearray((uninterrupted / name).read_bytes())
        contents[-1] ^= name == "weights.safetensors"
        (tmp_path / name).write_bytes(contents)
        tiny_config.init_from = str(tmp_path / name)
        with pytest.raises(ValueError, match=message):
            prepare_experiment(tiny_config)
    tiny_config.init_from = str(tmp_path)
    with pytest.raises(ValueError, match="expected the folder of one orbax checkpoint"):
        prepare_experiment(tiny_config)


@pytest.fixture(scope="module")
def transformer(tmp_path_factory):
    """A search over a transformer's layers and products from pretrained weights, under rules.

    The config, the run directory, what was printed, and the weights.
    """
    folder, config = tmp_path_factory.mktemp("transformer"), make_tiny_config()
    config.model = {"name": "deit_ti16", "channels": 24, "blocks": 1, "patch": 4}
    model = models.create("deit_ti16", classes=1000, **{k: v for k, v in config.model.items() if k != "name"})
    variables = model.init(jax.random.key(5), jnp.zeros((1, 8, 8, 1)), train=False)
    tensors = {}
    flat: dict[tuple[str, ...], jax.Array] = flatten_dict(variables)
    for (_, *place), leaf in flat.items():
        values = np.asarray(leaf)
        if place[-1] == "kernel":
            values = values.transpose(3, 2, 0, 1) if values.ndim == 4 else values.T
        tensors[pretrained.torch_name("deit_ti16", tuple(place))] = np.ascontiguousarray(values)
    save_file(tensors, folder / "weights.safetensors")
    config.init_from = str(folder / "weights.safetensors")
    config.optimizer.learning_rate = 0.0  # what is loaded stays
    config.optimizer.weight_decay = 0.0
    config.products, config.target = True, 4.0
    config.rules = ("mlp1: int8 per_tensor", "mlp2: per_block_16", "patches: ignore")
    (directory,), said = run_in(folder / "run", config)
    return config, directory, said, variables


def test_training_starts_from_pretrained_weights(transformer):
    config, directory, said, variables = transformer
    assert "weights.safetensors, but for classifier/bias, classifier/kernel" in " ".join(said.split())
    state = finished.read_weights(directory, finished.read_experiment(directory))
    np.testing.assert_array_equal(state.params["patches"]["kernel"], variables["params"]["patches"]["kernel"])
    config = config.copy_and_resolve_references()
    config.model.channels = 48
    with pytest.raises(ValueError, match=r"in .*weights.safetensors has shape .* needs"):
        prepare_experiment(config)


@pytest.mark.parametrize("normalized", [True, False])
def test_published_inception_is_adapted_to_the_inputs_of_the_data(normalized, tiny_config, tmp_path):
    """Its first layer alone."""
    kernel, mean = np.ones((3, 3, 3, 2), np.float32), np.zeros(2, np.float32)
    variables = {
        "params": {"stem1": {"conv": {"kernel": jnp.asarray(kernel)}}},
        "batch_stats": {"stem1": {"norm": {"mean": jnp.asarray(mean)}}},
    }
    save_file(
        {
            "Conv2d_1a_3x3.conv.weight": np.ascontiguousarray(kernel.transpose(3, 2, 0, 1)),
            "Conv2d_1a_3x3.bn.running_mean": mean,
        },
        tmp_path / "inception.safetensors",
    )
    tiny_config.model = {"name": "inception_v3"}
    tiny_config.init_from = str(tmp_path / "inception.safetensors")
    normalization = {"mean": [127.5] * 3, "deviation": [51.0] * 3} if normalized else None
    dataset, said = types.SimpleNamespace(normalization=normalization), []
    run = types.SimpleNamespace(trial=types.SimpleNamespace(config=tiny_config), dataset=dataset, say=said.append)
    others = dict.fromkeys(set(SearchState._fields) - set(variables))
    state = runs._with_pretrained_weights(run, SearchState(**variables, **others))
    np.testing.assert_allclose(state.params["stem1"]["conv"]["kernel"], kernel * (0.4 if normalized else 1), rtol=1e-6)
    assert ("adapted to the mean" in said[1]) == normalized
    assert normalized or "which the data have to give" in said[1]


def test_mixed_and_augmented_images_are_trained_on(tiny_config, run_experiment):
    tiny_config.data.augment, tiny_config.data.erasing = "rand_augment", 0.25
    tiny_config.data.mixup, tiny_config.data.cutmix = 0.8, 1.0
    tiny_config.optimizer.name, tiny_config.optimizer.learning_rate = "adamw", 1e-2
    (directory,), _ = run_experiment(tiny_config)
    lines = progress.read_metrics(directory / "metrics.jsonl")
    assert lines[-1]["loss"] < lines[0]["loss"]


def test_images_are_streamed(run_experiment, tfds_dir, monkeypatch):
    """With a few test images."""
    monkeypatch.setattr(
        images, "Stream", lambda pool, test, **rest: Stream(pool, [test[i] for i in range(500)], **rest)
    )
    config = fliqs_cifar10_resnet8.get_config()
    config.data.update({"data_dir": str(tfds_dir), "image_size": 8, "stream": True, "valid_examples": 256})
    config.data.augment = "resized_crop_flip"
    config.model = {"name": tiny_network.NAME}
    config.baselines, config.recalibration_batches = (), 2
    config.epochs = 0.02
    (directory,), _ = run_experiment(config)
    summary = summary_of(directory)
    assert 0.05 < summary["accuracy"] < 0.7
    assert summary["reading"]["decoder"].startswith("Pillow")
    assert summary["reading"]["skipped_records"] == {"train": 0, "valid": 0, "test": 0}


def test_clicks_are_searched_by_auc(run_experiment, criteo_file):
    config = fliqs_criteo.get_config()
    config.data.update({"file": str(criteo_file), "buckets": 100, "valid_examples": 300})
    config.model.update({"rank": 16, "width": 0.125, "embedding": 4})
    config.update({"batch_size": 50, "valid_batch_size": 300, "epochs": 2, "baselines": (), "seed": 1})
    (directory,), said = run_experiment(config)
    summary = summary_of(directory)
    assert summary["quality"] == "AUC"
    assert 0.55 < summary["AUC"] < 0.85
    assert summary["search_step_compilations"] == 1
    assert "validation AUC" in said
    assert "Test AUC" in fliqs_page.write([directory], directory / "report.html").read_text()


def test_products_of_activations_are_searched_where_asked(transformer):
    _, directory, *_ = transformer
    layers = {layer["path"]: layer for layer in summary_of(directory)["layers"]}
    assert {"block1/attention/scores", "block1/attention/mixture"} <= set(layers)
    assert layers["block1/mlp1"]["format"] == "int8"
    found = {path.split("/")[-1]: layer["granularity"] for path, layer in layers.items()}
    assert (found["mlp1"], found["mlp2"], found["qkv"]) == ("per_tensor", "per_block_16", "per_channel")


def test_products_that_cannot_be_quantised_are_told(tiny_config):
    tiny_config.model = {"name": "examples.text_transformer:Transformer"}
    tiny_config.data.name = "examples.text_transformer:documentation"
    tiny_config.products = True
    with pytest.raises(ConfigError, match=r"products=True: attention1:product1, .* cannot be quantised"):
        prepare_experiment(tiny_config)


def test_ignored_layers_stay_in_float_and_out_of_the_search(transformer):
    _, directory, said, _ = transformer
    summary = summary_of(directory)
    assert "patches" not in {layer["path"] for layer in summary["layers"]}
    assert [place["path"] for place in summary["outside"]["places"]] == ["patches"]
    assert said.count(f"({summary['outside']['share']:.1%}) are in no listed layer") == 1


def test_post_training_quantisation_trains_nothing(tiny_config, run_experiment, tmp_path):
    tiny_config.epochs, tiny_config.policy, tiny_config.genome = 20, "fixed", "bf16"
    tiny_config.checkpoint_every = 1000
    (trained,), _ = run_experiment(tiny_config, tmp_path / "trained")
    tiny_config.init_from, tiny_config.optimizer.name = str(trained / "weights.safetensors"), "frozen"
    tiny_config.genome, tiny_config.epochs, tiny_config.clip.source = "int8", 0.5, "profiled"
    (quantized,), said = run_experiment(tiny_config, tmp_path / "quantized")
    assert "weights from" in said
    before, after = (finished.read_weights(run, finished.read_experiment(run)) for run in (trained, quantized))
    jax.tree.map(np.testing.assert_array_equal, after.params, before.params)
    assert summary_of(trained)["accuracy"] > 0.5
    assert summary_of(quantized)["accuracy"] == pytest.approx(summary_of(trained)["accuracy"], abs=0.05)


def test_a_search_may_be_given_any_costs(tiny_config, run_experiment, tmp_path):
    layers = prepare_experiment(tiny_config).plan.workload
    entries = {
        (measured_tables.layer_key(layer), (bits, bits)): measured_tables.Entry(bits * layer.macs)
        for layer in layers
        for bits in (4, 8, 16)
    }
    for bits in (4, 8, 16):
        del entries[measured_tables.layer_key(layers[1]), (bits, bits)]
    measured_tables.write(tmp_path / "board.csv", measured_tables.Lut("board", "latency", "us", entries))
    tiny_config.cost, tiny_config.target = f"interpolated:{tmp_path}/board.csv", 1.3
    tiny_config.budgets = (
        {"cost": "bitfusion_energy", "target": 1.2, "target_unit": "int4"},
        {"cost": "peak_activation_bytes", "target": 100000, "target_unit": "absolute"},
    )
    tiny_config.baselines = ("int8",)
    directories, _ = run_experiment(tiny_config)
    summary = summary_of(directories[1])
    assert (summary["cost_name"], summary["cost_unit"]) == (tiny_config.cost, "us")
    assert summary["cost"] == pytest.approx(sum(8 * layer.macs for layer in layers))
    estimated = [layer["path"] for layer in summary["layers"] if layer["cost_is_estimate"]]
    assert "stage1_block1/conv1" in estimated and "classifier" not in estimated
    assert summary["relative_cost"] == pytest.approx(2 / 1.3)
    assert [budget["name"] for budget in summary["budgets"][1:]] == ["bitfusion_energy", "peak_activation_bytes"]
    assert summary["budgets"][2]["cost"] == max(layer.input_values + layer.output_values for layer in layers)
    page = fliqs_page.write(directories, directories[0] / "report.html").read_text()
    assert "cost (us" in page and "bitfusion_energy" in page
    assert "Interpolated, not measured: stage1_block1/conv1" in page


def budget(cost, target, target_unit="int4"):
    return {"cost": cost, "target": target, "target_unit": target_unit}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quality": "recall"}, "unknown quality 'recall': expected one of accuracy, auc"),
        ({"quality": "math:pi"}, r"quality='math:pi': expected a fliqs_jax\.quality\.Quality, got float"),
        ({"loss": "hinge"}, "unknown loss 'hinge': expected one of cross_entropy, binary_cross_entropy"),
        ({"cost": "joules"}, "unknown cost 'joules': expected one of bit_operations, weight_bytes"),
        ({"cost": "nowhere.csv"}, "cannot read the table nowhere.csv"),
        ({"cost": "fpga_area"}, "stem: the published areas are for integers up to 8 bits, bf16 is none"),
        ({"budgets": ("weight_bytes: 1.2 int4",)}, "budget 'weight_bytes: 1.2 int4': expected {'cost': NAME"),
        ({"budgets": (budget("bit_operations", 2),)}, "one cost is there twice"),
        ({"budgets": (budget("weight_bytes", 0.5),)}, "target=0.5 of weight_bytes .* is out of reach: .* from 1 to 4"),
        ({"formats": ""}, "formats='': expected a format space, unless config.genome is a file"),
    ],
)
def test_costs_and_qualities_that_cannot_be_are_refused(tiny_config, changes, message):
    tiny_config.update(changes)
    with pytest.raises(ValueError, match=message):
        prepare_experiment(tiny_config)
