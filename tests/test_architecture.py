"""The house: who may import whom, read from the imports themselves, and names that occur once."""

import ast
import collections
import importlib.util
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ("aqt_like", "hwcost", "fliqs_jax", "apq_jax", "configs", "launch")
NEED_EXTRAS = {  # requirements-devices.txt
    *("onnx_builder.py", "onnx_formats.py", "onnx_graphs.py", "onnx_operations.py", "run_exported.py"),
    *("fast_graphs.py", "qonnx_graphs.py", "real_units.py", "static_quantization.py"),
}
BELOW = {  # What each room may import beside itself; a name stands for all below it.
    "aqt_like": (),
    "hwcost": ("aqt_like",),
    "fliqs_jax.models": ("hwcost", "aqt_like"),
    "fliqs_jax": ("fliqs_jax.models", "hwcost", "aqt_like"),
    "apq_jax": ("fliqs_jax.models", "hwcost", "aqt_like"),
    "configs": (),
    "launch": ("apq_jax", "fliqs_jax", "hwcost", "aqt_like"),
}


def sources() -> list[pathlib.Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def module_name(path: pathlib.Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path) for path in sources()}


def imported_modules(path: pathlib.Path) -> set[str]:
    """The modules of this repository that a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in MODULES else node.module for name in inside}
    return {name for name in names if name.split(".")[0] in PACKAGES}


def is_in(module: str, room: str) -> bool:
    return module == room or module.startswith(f"{room}.")


def room_of(module: str) -> str:
    return max((room for room in BELOW if is_in(module, room)), key=len)


def forbidden_imports(module: str, path: pathlib.Path) -> set[str]:
    room = room_of(module)
    return {
        imported
        for imported in imported_modules(path)
        if room_of(imported) != room and not any(is_in(imported, below) for below in BELOW[room])
    }


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_arrows(path):
    assert not forbidden_imports(module_name(path), path)


def test_a_forbidden_import_would_be_seen(tmp_path):
    path = tmp_path / "bad.py"
    path.write_text("def f():\n    from fliqs_jax import models, search\n    from launch.training.loop import run\n")
    assert forbidden_imports("apq_jax.bad", path) == {"fliqs_jax.search", "launch.training.loop"}
    assert forbidden_imports("fliqs_jax.models.bad", path) == {"fliqs_jax.search", "launch.training.loop"}
    assert forbidden_imports("fliqs_jax.bad", path) == {"launch.training.loop"}


def test_apq_never_loads_the_other_search():
    names = sorted(name for name in MODULES if is_in(name, "apq_jax"))
    code = f"import importlib, sys\nfor name in {names}: importlib.import_module(name)\nprint(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    ours = {name for name in loaded.stdout.split() if is_in(name, "fliqs_jax")}
    assert "fliqs_jax.models" in ours
    assert {name for name in ours if not is_in(name, "fliqs_jax.models")} == {"fliqs_jax"}


def test_module_names_occur_once():
    """In the packages: an experiment in configs/ and the benchmark that measures it may share a name."""
    names = [path.stem for path in sources() if path.stem not in ("__init__", "__main__")]
    assert [name for name, count in collections.Counter(names).items() if count > 1] == []


def test_no_import_has_to_be_renamed():
    """A module whose name its values take would be imported under another one."""
    for path in (*sources(), *sorted((ROOT / "benchmarks").glob("*.py")), *sorted((ROOT / "tests").rglob("*.py"))):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PACKAGES:
                assert not [alias.asname for alias in node.names if alias.asname], path


def test_imports_start_no_device():
    """Arrays made while importing would claim a device before the program has said a word."""
    modules = [
        module_name(path)
        for path in sources()
        if path.name != "__main__.py" and (path.name not in NEED_EXTRAS or importlib.util.find_spec("onnx"))
    ]
    code = f"import importlib\nfor name in {modules}: importlib.import_module(name)"
    environment = {**os.environ, "JAX_PLATFORMS": "no_such_platform"}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True)
