"""Who may import whom, read from the imports themselves."""

import ast
import importlib.util
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ("aqt_like", "hwcost", "fliqs_jax", "apq_jax", "configs", "launch")
NEED_EXTRAS = {"onnx_export.py"}  # requirements-devices.txt
ALLOWED = {
    "aqt_like": set(),
    "hwcost": {"aqt_like"},
    "fliqs_jax": {"aqt_like", "hwcost"},
    "apq_jax": {"aqt_like", "hwcost"},
    "configs": set(),
    "launch": {"aqt_like", "hwcost", "fliqs_jax", "apq_jax"},
}


def imported_packages(path: pathlib.Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add((node.module or "").split(".")[0])
    return names & set(PACKAGES)


def sources() -> list[pathlib.Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_arrows(path):
    package = path.relative_to(ROOT).parts[0]
    assert imported_packages(path) <= ALLOWED[package] | {package}


def test_every_package_is_read():
    found = {path.relative_to(ROOT).parts[0] for path in sources()}
    assert {"aqt_like", "hwcost", "fliqs_jax", "configs", "launch"} <= found


def test_a_forbidden_import_would_be_seen(tmp_path):
    path = tmp_path / "bad.py"
    path.write_text("def f():\n    from fliqs_jax.search import Search\n    import launch.loop\n")
    assert imported_packages(path) == {"fliqs_jax", "launch"}


def test_imports_start_no_device():
    """Arrays made while importing would claim a device before the program has said a word."""
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in sources()
        if path.name != "__main__.py" and (path.name not in NEED_EXTRAS or importlib.util.find_spec("onnx"))
    ]
    code = f"import importlib\nfor name in {modules}: importlib.import_module(name)"
    environment = {**os.environ, "JAX_PLATFORMS": "no_such_platform"}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True)
