import io

import pytest
from rich.console import Console

from configs import fliqs_digits
from launch.training import runs
from launch.training.experiment import prepare_experiment
from launch.training.interruption import StopRequested
from tests import tiny_network


def make_tiny_config():
    config = fliqs_digits.get_config()
    config.formats, config.target, config.target_unit = "int_s", 1.15, "int4"
    config.model = {"name": tiny_network.NAME}
    config.policy = "reinforce"
    config.epochs = 2
    config.baselines = ()
    config.log_every = 3
    config.checkpoint_every = 4
    config.recalibration_batches = 2
    config.random_search.evaluated = 2
    return config


def changed(config, key, value):
    """The config with one setting of any type, which may be new."""
    *sections, name = key.split(".")
    inside = config
    with config.unlocked(), config.ignore_type():
        for section in sections:
            inside = inside[section]
        inside[name] = value
    return config


def run_in(workdir, config, stop=None):
    console = Console(file=io.StringIO(), width=200)
    prepared = prepare_experiment(config)
    directories = runs.run_all(prepared, workdir, console, StopRequested() if stop is None else stop)
    return directories, console.file.getvalue()


@pytest.fixture
def tiny_config():
    """Sixteen steps of a network of four layers on the digits."""
    return make_tiny_config()


@pytest.fixture
def run_experiment(tmp_path):
    """Runs a config in a directory; gives the run directories and what was printed."""
    return lambda config, workdir=tmp_path / "run", stop=None: run_in(workdir, config, stop)


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory):
    """The directory of a finished run of the tiny config; not to be written to."""
    return run_in(tmp_path_factory.mktemp("finished") / "run", make_tiny_config())[0][0]
