"""Whole runs of models that are called in unusual ways: checked, searched, resumed, measured and frozen."""

import json
import signal

import chex
import numpy as np
import pytest
from rich.console import Console

from aqt_like.frozen_network import FrozenNetwork
from configs import fliqs_digits
from launch import export, freeze, sensitivity
from launch.training import finished
from launch.training.checkpoints import Checkpoints
from launch.training.experiment import prepare_experiment
from launch.training.interruption import StopRequested
from launch.training.settings import ConfigError
from tests.launch.conftest import run_in

PLACE = "tests.called_networks"


def config_of(model, source, **changes):
    config = fliqs_digits.get_config()
    config.model = {"name": f"{PLACE}:{model}"}
    config.data.name, config.data.valid_examples = f"{PLACE}:{source}", 16
    config.formats, config.target, config.target_unit, config.baselines = "int_s", 1.2, "int4", ()
    config.batch_size = config.valid_batch_size = 8
    config.epochs, config.log_every, config.checkpoint_every, config.recalibration_batches = 1.5, 3, 3, 1
    config.optimizer.name = f"{PLACE}:optimizer"
    config.controller.fisher.examples = 2
    config.update(changes)
    return config


def searched(model, config, layers, workdir):
    (whole,), text = run_in(workdir, config)
    summary = json.loads((whole / "summary.json").read_text())
    assert [layer["path"] for layer in summary["layers"]] == layers
    assert summary["call"][0].startswith(f"the model is called as {model}(")
    assert summary["call"][0] in text.replace("\n", "")
    assert list(FrozenNetwork.load(whole / "network.safetensors").layers) == layers
    return whole, summary


def test_a_run_with_random_numbers_is_resumed_and_measured(tmp_path, capsys):
    """Inputs by name, dropout, drop-path, statistics over a named axis, partitioned kernels, a cache, a dict.

    What is frozen and written are averages of the weights.
    """
    config = config_of("Sentences", "sentences", ema=0.9)
    whole, summary = searched("Sentences", config, ["up", "head"], tmp_path / "whole")
    stop = StopRequested()
    stop.signal_number = signal.SIGTERM
    with pytest.raises(SystemExit):
        run_in(tmp_path / "parts", config, stop)
    (parts,), _ = run_in(tmp_path / "parts", config)
    assert json.loads((parts / "summary.json").read_text())["state_sha256"] == summary["state_sha256"]
    prepared = prepare_experiment(config)
    _, state = Checkpoints(whole / "checkpoints").restore(finished.initial_state(prepared, prepared.trials[0]))
    written = finished.read_weights(whole, prepared).params
    chex.assert_trees_all_equal(written, state.opt_state.average)
    assert not np.array_equal(written["head"]["kernel"], state.params["head"]["kernel"])
    frozen = FrozenNetwork.load(whole / "network.safetensors").variables["params"]
    np.testing.assert_array_equal(frozen["head"]["bias"], written["head"]["bias"])
    with pytest.raises(ConfigError, match=r"averages weights: without summary\.json, the command"):
        (parts / "network.safetensors").unlink()
        freeze.freeze(parts, Console(), tolerance=1.0)
    sensitivity.main([str(whole), "--examples=16"])
    assert "head" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"input ids, input mask: expected one input"):
        export.main([str(whole), f"--out={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists()


def test_a_run_with_loops_and_tuples(tmp_path):
    """Two inputs in a tuple, a recurrent cell, layers in a loop with dropout, a flag in a field's field, a tuple."""
    layers = ["SimpleCell_0/i", "SimpleCell_0/h", "blocks/fc[0]", "blocks/fc[1]", "head"]
    searched("Sequences", config_of("Sequences", "sequences"), layers, tmp_path / "whole")


def test_a_call_of_ones_own_is_an_adapter():
    config = config_of("Raw", "named_sequences", apply=f"{PLACE}:call_raw")
    prepared = prepare_experiment(config)
    assert prepared.search.paths == ("encoder", "head")
    assert prepared.search.model.told == "call_raw(Raw, inputs, train); random numbers in training: dropout"


def test_a_network_of_ones_own_by_its_name_alone():
    config = fliqs_digits.get_config()
    config.model.name = "examples.digits_mlp:make_model"  # depth and width are of the config's own network
    prepared = prepare_experiment(config)
    assert prepared.config.model.to_dict() == {"name": "examples.digits_mlp:make_model"}
    config.model = {"name": "examples.digits_mlp:make_model", "widht": 3}
    with pytest.raises(ValueError, match=r"unexpected keyword argument 'widht'"):
        prepare_experiment(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"name": f"{PLACE}:Raw"}}, r"model='.*Raw': Raw\(x\).*NotImplementedError.*config.apply"),
        ({"output": "hidden.x"}, "output='hidden.x': the model returns an array .2, 6, 8. there"),
        ({"apply": f"{PLACE}:sentences"}, "apply 'tests.*sentences': expected a function of .model, inputs, train"),
        ({"model": {"name": f"{PLACE}:CLASSES"}}, "model 'tests.called_networks:CLASSES': .* is not a callable object"),
        ({"model": {"name": f"{PLACE}:Holder"}}, "expected a flax.linen.Module, got Holder: return its `module`$"),
        ({"model": {"name": f"{PLACE}:nnx_network"}}, "expected a .*, got Linear of nnx, which is not taken yet$"),
        ({"model": {"name": f"{PLACE}:Raw", "classes": 3}}, "model.classes=3: expected no such setting, the data have"),
        ({"apply": "nowhere"}, "unknown apply 'nowhere': expected package.module:function$"),
        ({"init_anew": ("head",)}, "init_anew=.*: there is no init_from to read"),
    ],
)
def test_what_cannot_be_called_is_refused(changes, message):
    changes = dict(changes)
    config = config_of("Sentences", "sentences")
    config.model = changes.pop("model", config.model)
    config.update(changes)
    with pytest.raises(ValueError, match=message):
        prepare_experiment(config)


def test_a_model_takes_stored_activations_or_is_refused():
    """The state of a recurrent cell is float32, whatever its layers give."""
    prepared = prepare_experiment(config_of("Sentences", "sentences", activations="bfloat16"))
    assert prepared.search.quantizer.activations == "bfloat16"
    assert prepared.arithmetic.summary(1)["activations"] == "bfloat16"
    with pytest.raises(ConfigError, match=r"activations='bfloat16': expected 'float32', since the model .* carry"):
        prepare_experiment(config_of("Sequences", "sequences", activations="bfloat16"))


def test_one_multiple_clips_inputs_in_all_formats():
    """As in FLIQS, Table 4; weights keep that of each format."""
    found, usual = (
        prepare_experiment(config_of("Sentences", "sentences", clip={"input_multiple": multiple})).clip_multiples
        for multiple in (4.0, 0.0)
    )
    np.testing.assert_array_equal(found.weights, usual.weights)
    assert (found.inputs == 4).all()
    assert (found.unsigned_inputs == 4).all()
    assert found.inputs.shape == usual.inputs.shape
    assert len(np.unique(usual.inputs)) > 1


def test_optimizers_of_optax_are_named():
    config = config_of("Sentences", "sentences")
    config.optimizer.name = "optax:lion"
    assert "momentum" in prepare_experiment(config).remarks()[-1]
