"""Shared set-up: a persistent compilation cache, and the folder of real data that may lie beside the repository."""

import os
import pathlib

import jax
import pytest

ROOT = pathlib.Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data"

jax.config.update("jax_compilation_cache_dir", str(ROOT / ".cache" / "jax"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


@pytest.fixture(scope="session")
def tfds_dir() -> pathlib.Path:
    """CIFAR-10 as tfds prepares it: where FLIQS_TFDS_DIR says, or beside the repository."""
    directory = pathlib.Path(os.environ.get("FLIQS_TFDS_DIR", DATA / "tfds"))
    if not (directory / "cifar10").is_dir():
        pytest.skip(f"needs CIFAR-10 as tfds prepares it in {directory} (or in FLIQS_TFDS_DIR)")
    return directory


@pytest.fixture(scope="session")
def criteo_file() -> pathlib.Path:
    """A real click log: where FLIQS_CRITEO_FILE says, or beside the repository."""
    file = pathlib.Path(os.environ.get("FLIQS_CRITEO_FILE", DATA / "criteo" / "train.tiny.csv"))
    if not file.is_file():
        pytest.skip(f"needs a click log of Criteo's in {file} (or in FLIQS_CRITEO_FILE)")
    return file


@pytest.fixture(scope="session")
def bitfusion_file() -> pathlib.Path:
    """APQ's table of BitFusion's latencies and energies: where FLIQS_BITFUSION_FILE says, or beside the repository."""
    file = pathlib.Path(os.environ.get("FLIQS_BITFUSION_FILE", DATA / "bitfusion" / "apq_lut_b1_part.json"))
    if not file.is_file():
        pytest.skip(f"needs APQ's table of BitFusion in {file} (or in FLIQS_BITFUSION_FILE)")
    return file
