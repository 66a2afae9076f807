"""The wheel holds what is needed and runs from another folder, one that has a `configs` of its own."""

import functools
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile

import pytest
from packaging.requirements import Requirement

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = [pattern.removesuffix("*") for pattern in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]]
COMMANDS = ("fliqs.py", "cost.py", "layers.py", "lut.py", "report.py", "sensitivity.py", "apq", "apq/__main__.py")
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
MODEL = """
import flax.linen as nn
def make_model():
    return nn.Sequential([nn.Dense(4), nn.Dense(10)])
class OnImages(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(10)(x.reshape(len(x), -1))
"""
IMPORT_ALL = """
import importlib, sys
for name in sys.argv[1:]:
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        assert error.name.split(".")[0] in ("onnx", "onnxruntime", "openvino", "ray"), name
    else:
        assert module.__file__.startswith(sys.prefix), module
"""


def pip(*arguments):
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def environment(path, *wheels):
    """The folder of the programs of a new environment that has the wheels, and what this one has except the project."""
    venv.create(path, symlinks=True)
    place = sysconfig.get_path("purelib", "venv", {"base": str(path), "platbase": str(path)})
    for wheel in wheels:
        pip("--python", path / "bin" / "python", "install", "--quiet", "--no-deps", wheel)
    pathlib.Path(place, "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return path / "bin"


def output(*command, cwd, code=0):
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, since building leaves files behind."""
    folder = tmp_path_factory.mktemp("wheel")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / "source" / package, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, folder / "source")
    pip("wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, folder / "source")
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def programs(wheel, tmp_path_factory):
    return environment(tmp_path_factory.mktemp("environment"), wheel)


@pytest.fixture
def elsewhere(tmp_path):
    """A folder with a `configs` that no command may import, a config and a model."""
    for name in ("__init__", "common", "fliqs_digits"):
        file = tmp_path / "configs" / f"{name}.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text("raise RuntimeError('the wrong configs')")
    (tmp_path / "mine.py").write_text("from configs.fliqs_digits import get_config")
    (tmp_path / "my_models.py").write_text(MODEL)
    return tmp_path


def test_it_holds_every_file_of_the_packages(wheel):
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = [path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file()]
    assert held == {str(path) for path in files if path.suffix != ".pyc"}


def test_every_module_is_imported_from_it(wheel, programs, elsewhere):
    files = [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".py")]
    modules = [".".join(pathlib.Path(name).with_suffix("").parts).removesuffix(".__init__") for name in files]
    output(programs / "python", "-P", "-c", IMPORT_ALL, *modules, cwd=elsewhere)


@pytest.mark.parametrize("command", ["fliqs", "apq"])
def test_installed_commands_help(command, programs, elsewhere):
    said = output(programs / command, "--help", cwd=elsewhere)
    assert f"python -m launch.{command}" in said
    assert "--config" in said
    assert "--workdir" in said


def test_a_shipped_config_is_found_by_name_and_searched_by(programs, elsewhere):
    settings = {"epochs": 2, "baselines": "()", "model": {"name": "my_models:OnImages"}, "recalibration_batches": 2}
    options = [f"--config.{key}={value}" for key, value in settings.items()]
    said = output(programs / "fliqs", "--config=fliqs_digits", "--workdir=run", *options, cwd=elsewhere)
    assert "report: run/report.html" in said
    assert (elsewhere / "run" / "report.html").exists()


def test_a_config_and_a_model_of_ones_own(programs, elsewhere):
    options = ("--config=mine.py", "--workdir=run", "--config.model={'name': 'my_models:make_model'}")
    said = output(programs / "fliqs", *options, "--config.target=0.1", cwd=elsewhere, code=1)
    assert "out of reach" in said
    said = output(
        programs / "python", "-m", "launch.layers", "--model=my_models:make_model", "--input=8", cwd=elsewhere
    )
    assert "2 layers, 72 MACs" in said


def test_modules_run(programs, elsewhere):
    assert "GBOPs" in output(programs / "python", "-m", "launch.cost", "--model=resnet18", cwd=elsewhere)
    said = output(
        programs / "python", "-m", "launch.inspect", "--model=cifar_resnet", "--input=1,32,32,3", cwd=elsewhere
    )
    assert "launch.inspect is now called launch.layers" in said
    assert "22 layers" in said


@pytest.fixture(scope="module")
def unpacked(wheel, tmp_path_factory):
    """Where the packages lie without being installed, and a Python that has not installed them."""
    folder = tmp_path_factory.mktemp("unpacked")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder, environment(folder / "environment") / "python"


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_run_as_files_where_nothing_is_installed(command, unpacked, elsewhere):
    folder, python = unpacked
    said = output(python, folder / "launch" / command, "--help", cwd=elsewhere)
    assert f"python -m launch.{command.removesuffix('.py').removesuffix('/__main__')}" in said


@functools.cache
def pinned(file):
    return dict(re.findall(r"^(\S+?)==(\S+)", (ROOT / file).read_text(), re.MULTILINE))


@pytest.mark.parametrize(
    ("file", "ranges"),
    [
        ("requirements.txt", PROJECT["project"]["dependencies"]),
        ("requirements.txt", PROJECT["project"]["optional-dependencies"]["test"]),
        ("requirements-devices.txt", PROJECT["project"]["optional-dependencies"]["devices"]),
        ("requirements-images.txt", PROJECT["project"]["optional-dependencies"]["images"]),
        ("requirements-ray.txt", PROJECT["project"]["optional-dependencies"]["ray"]),
    ],
)
def test_what_is_tested_is_in_the_ranges(file, ranges):
    for requirement in map(Requirement, ranges):
        assert pinned(file)[requirement.name] in requirement.specifier, requirement
