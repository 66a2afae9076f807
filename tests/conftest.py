"""Shared set-up: a persistent compilation cache, and the folder of real data that may lie beside the repository."""

import os
import pathlib

# Programs that tests start inherit all of this. XLA's former emitters compile the same programs in a third of the time.
os.environ["XLA_FLAGS"] = (
    "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1 " + os.environ.get("XLA_FLAGS", "")
)

os.environ["JAX_COMPILATION_CACHE_DIR"] = str(pathlib.Path(__file__).parents[1] / ".cache" / "jax")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"

import jax
import pytest

DATA = pathlib.Path(__file__).parents[2] / "shared" / "data"


# What rounds is compiled with all optimisations; the rest with fewer, as JAX's own tests are.
ROUNDING = {f"test_{name}" for name in ("numerics", "gradients", "granularity", "calibration", "packing")}
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # of the processes that tests start
jax.config.update("jax_disable_most_optimizations", True)  # of fixtures that are made before the one below


@pytest.fixture(scope="module", autouse=True)
def _compilation(request):
    """Chooses how a module's programs are compiled, and frees them after it: a worker holds those of one module."""
    jax.config.update("jax_disable_most_optimizations", request.path.stem not in ROUNDING)
    yield
    jax.clear_caches()


# Files of more than half a minute, the longest first, so that no worker is left with one of them at the end.
LONGEST = ("test_runs", "test_apq", "test_readme", "test_examples", "test_models", "test_wheel", "test_onnx_graphs")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


def _real(variable: str, place: str, what: str) -> pathlib.Path:
    """A file or folder of real data: where an environment variable says, or beside the repository; else skips."""
    path = pathlib.Path(os.environ.get(variable, DATA / place))
    if not path.exists():
        pytest.skip(f"needs {what} in {path} (or in {variable})")
    return path


@pytest.fixture(scope="session")
def tfds_dir() -> pathlib.Path:
    """A folder in which tfds has CIFAR-10 prepared."""
    return _real("FLIQS_TFDS_DIR", "tfds", "CIFAR-10 as tfds prepares it")


@pytest.fixture(scope="session")
def criteo_file() -> pathlib.Path:
    """A real click log."""
    return _real("FLIQS_CRITEO_FILE", "criteo/train.tiny.csv", "a click log of Criteo's")


@pytest.fixture(scope="session")
def bitfusion_file() -> pathlib.Path:
    """APQ's table of BitFusion's latencies and energies."""
    return _real("FLIQS_BITFUSION_FILE", "bitfusion/apq_lut_b1_part.json", "APQ's table of BitFusion")
