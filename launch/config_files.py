"""Config files: where they are, and what `from configs import …` means in one."""

import contextlib
import difflib
import importlib.util
import pathlib
import runpy
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

SHIPPED = pathlib.Path(__file__).parents[1] / "configs"  # beside this package, in a checkout and where it is installed


class ConfigFileError(ValueError):
    """A config that there is not."""


def load_config(name: str) -> Any:
    """The config that `--config=name` means: what its `get_config` returns, a `ConfigDict` in all that are shipped.

    While it is loaded, `configs` means the folder that the file lies in, if that is what it is called, and then the
    shipped one; no other folder of that name, whatever `sys.path` says.

    Args:
      name: a file's path, or the bare name of a shipped config; either may end in `:variant`, which `get_config` gets.

    Raises:
      ConfigFileError: there is no such config.
    """
    file, separator, variant = name.partition(":")
    path = _find(file)
    with _configs_in([folder for folder in (path.parent, SHIPPED) if folder.name == "configs"]):
        return runpy.run_path(str(path))["get_config"](*[variant] if separator else [])


def _find(file: str) -> pathlib.Path:
    """The absolute path of a config file, or of a shipped config by its bare name."""
    shipped = {path.stem: path for path in sorted(SHIPPED.glob("*.py")) if "def get_config(" in path.read_text()}
    if file in shipped:
        return shipped[file]
    path = pathlib.Path(file).absolute()
    if path.is_file():
        return path
    near = [path.stem] if path.stem in shipped else difflib.get_close_matches(path.stem, shipped)
    hint = f"did you mean {' or '.join(near)}?" if near else f"shipped are {', '.join(shipped)}"
    raise ConfigFileError(f"there is no config {file!r}, neither a file nor shipped; {hint}")


@contextlib.contextmanager
def _configs_in(folders: list[pathlib.Path]) -> Iterator[None]:
    """Makes `configs` the package whose modules lie in these folders. The `__init__` of the first that has one runs."""
    first = next(file for folder in folders if (file := folder / "__init__.py").is_file())
    spec = importlib.util.spec_from_file_location("configs", first, submodule_search_locations=[*map(str, folders)])
    assert spec is not None
    assert spec.loader is not None
    outside = _take_modules()
    try:
        package = sys.modules["configs"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(package)
        yield
    finally:
        _take_modules()
        sys.modules.update(outside)


def _take_modules() -> dict[str, ModuleType]:
    """The modules of what `configs` has been until now, which no longer count as loaded."""
    return {name: sys.modules.pop(name) for name in list(sys.modules) if f"{name}.".startswith("configs.")}
