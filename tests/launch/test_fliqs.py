"""The command line: mistakes are told in one line, within seconds, before anything is written."""

import importlib
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest

from launch import data
from launch.training.experiment import prepare_experiment
from launch.training.settings import ConfigError

ROOT = pathlib.Path(__file__).parents[2]


def run_command(*options, workdir, config="configs/fliqs_digits.py"):
    return subprocess.run(
        [sys.executable, "-m", "launch.fliqs", f"--config={config}", f"--workdir={workdir}", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--config=fliqs_digit", "error: there is no config 'fliqs_digit', neither a file nor shipped; did you mean"),
        ("--config.epohcs=1", "error: the config has no key 'epohcs'; did you mean epochs?"),
        ("--config.data_dir=x", "error: the config has no key 'data_dir'; did you mean data.data_dir?"),
        ("--config.zzz=x", "error: the config has no key 'zzz': it has activations, apply, baselines"),
        ("--config.rules[0]=x", "error: the config has no key 'rules[0]'; did you mean rules?"),
        ("--config.formats=int_q", "error: unknown format space 'int_q'"),
        ("--config.target=0.5", "out of reach: genomes over int2,int3,int4,int6,int8 cost from 1 to 16"),
    ],
)
def test_mistakes_end_the_command_within_seconds(option, message, tmp_path):
    start = time.monotonic()
    done = run_command(option, workdir=tmp_path / "run")
    assert time.monotonic() - start < 30
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_keys_of_a_shipped_config_are_checked_too_beside_a_whole_section(tmp_path):
    done = run_command(
        "--config.distillation={}", "--config.epohcs=1", workdir=tmp_path / "run", config="fliqs_cifar10:deit_ti16"
    )
    assert done.returncode == 1
    assert done.stderr == "error: the config has no key 'epohcs'; did you mean epochs?\n"


def test_the_former_name_of_a_command_says_the_new_one():
    command = [sys.executable, "-m", "launch.inspect", "--model=recommender", "--input=1,39"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == "launch.inspect is now called launch.layers: python -m launch.layers\n"
    assert "MACs" in done.stdout


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"formats": "int4,int3.5"}, "unknown number format 'int3.5'"),
        ({"formats": "uint4,int8"}, "uint4 cannot hold what is negative"),
        ({"formats": "int4,int16"}, "no clip multiple for int16"),
        ({"target": 17.0}, r"target=17 of bit_operations \(in units of int4\) is out of reach: .* from 1 to 16"),
        ({"target_unit": "absolute", "target": 1.0}, "out of reach"),
        ({"target_unit": "kilobits"}, "unknown number format 'kilobits'"),
        (
            {"policy": "greedy"},
            "unknown policy 'greedy': expected one of reinforce, fisher, uniform, fixed, or your own",
        ),
        ({"policy": "fixed"}, "needs --config.genome"),
        ({"genome": "int4"}, "genome='int4' is for --config.policy=fixed"),
        (
            {"policy": "fixed", "genome": "e4m3"},
            "format 'e4m3' is not in the search space: stem.format is one of int4, int8, bf16",
        ),
        ({"policy": "fixed", "genome": "none.json"}, "cannot read the genome file none.json"),
        ({"baselines": ("int6",)}, "format 'int6' is not in the search space"),
        (
            {"controller.reinforce.reward": "greedy"},
            "controller.reinforce.reward 'greedy': expected one of absolute, one_sided",
        ),
        ({"controller.reinforce.entropy_schedule": "step"}, "entropy_schedule 'step': expected one of cosine"),
        ({"model.name": "vgg"}, "unknown model 'vgg': expected one of cifar_resnet"),
        ({"model.name": "cifar_resnet", "model.depth": 9}, r"depth 9: expected 6n \+ 2"),
        ({"batch_size": 2000}, "batch_size=2000: there are 1037 such examples, with data.valid_examples=400 of 1437"),
        ({"valid_batch_size": 401}, "valid_batch_size=401: there are 400 such"),
        ({"data.valid_examples": 1437}, "batch_size=128: there are 0 such"),
        ({"data.augment": "mixup"}, "data.augment='mixup': expected one of none, crop_flip"),
        ({"data.image_size": 32}, "data.image_size=32: digits have 8 pixels"),
        ({"data.name": "no_such_set"}, "no data set 'no_such_set'"),
    ],
)
def test_settings_that_cannot_work_are_named(tiny_config, changes, message):
    with tiny_config.unlocked():
        tiny_config.update_from_flattened_dict(changes)
    with pytest.raises((ConfigError, data.DataError, ValueError), match=message):
        prepare_experiment(tiny_config)


EXPERIMENTS = sorted(path.stem for path in (ROOT / "configs").glob("fliqs_*.py"))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_config_can_be_prepared(name):
    """With zeros in place of data that is not here."""
    config = importlib.import_module(f"configs.{name}").get_config()
    size = config.data.get("image_size") or 32
    shape, classes = ((39,), 1) if config.data.name == "click_log" else ((size, size, 3), 1000)
    examples = config.data.valid_examples + config.batch_size
    split = data.Split(np.broadcast_to(np.float32(0), (examples, *shape)), np.arange(examples) % 2)
    config.init_from = ""
    prepared = prepare_experiment(config, source=data.Arrays(train=split, test=split, classes=classes))
    assert prepared.trials[0].directory == ""
    assert len(prepared.trials) == 1 + len(config.baselines)
