"""What is public: every package says so, has it, and shows it."""

import importlib
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = sorted(
    ".".join(path.parent.relative_to(ROOT).parts)
    for top in ("aqt_like", "hwcost", "fliqs_jax", "apq_jax", "configs", "launch")
    for path in (ROOT / top).rglob("__init__.py")
)


@pytest.mark.parametrize("name", PACKAGES)
def test_what_a_package_names_is_there(name):
    package = importlib.import_module(name)
    assert package.__doc__
    assert len(set(package.__all__)) == len(package.__all__)
    for public in package.__all__:
        assert getattr(package, public) is not None
        assert public in dir(package)
    assert not hasattr(package, "no_such_name")


@pytest.mark.parametrize("name", ["fliqs_jax", "launch"])
def test_what_is_public_is_loaded_when_it_is_asked_for(name):
    code = f"import sys, {name}\nprint(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert [module for module in loaded.stdout.split() if module.startswith(f"{name}.")] == []
    assert "jax" not in loaded.stdout.split()
