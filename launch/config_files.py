"""Config files: where they are searched, and what `from configs import …` imports in them."""

import contextlib
import difflib
import importlib.util
import inspect
import pathlib
import runpy
import sys
import traceback
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

SHIPPED = pathlib.Path(__file__).parents[1] / "configs"  # next to this package, in a checkout and when installed


class ConfigFileError(ValueError):
    """There is no such config."""


def load_config(name: str) -> Any:
    """Config that `--config=name` selects: the return value of its `get_config`, a `ConfigDict` if it is shipped.

    While the file is loaded, `configs` is the package of the file's own folder, if that is called `configs`, and of
    the shipped folder after it. Other folders of this name on `sys.path` are ignored.

    Args:
      name: path of a file, or name of a shipped config; `:variant` at the end is passed to `get_config`.

    Raises:
      ConfigFileError: there is no such config, or none of this variant.
    """
    file, separator, variant = name.partition(":")
    path = _find(file)
    with _configs_in([folder for folder in (path.parent, SHIPPED) if folder.name == "configs"]):
        get_config = runpy.run_path(str(path)).get("get_config")
        if get_config is None:
            raise ConfigFileError(f"{path} has no function get_config")
        if separator and not inspect.signature(get_config).parameters:
            raise ConfigFileError(f"--config={name}: {path.name} has no variants")
        return get_config(*[variant] if separator else [])


def what_failed(name: str, error: Exception) -> str:
    """What went wrong while a config file was loaded, and in which of its lines."""
    file = str(_find(name.partition(":")[0]))
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    if isinstance(error, SyntaxError) and error.filename == file:
        lines = [error.lineno]
    told = " ".join(str(error).split()) or "no message"
    return f"{f'line {lines[-1]}: ' if lines else ''}{type(error).__name__}: {told}"


def meant(key: str, keys: Sequence[str]) -> str:
    """What an unknown key may mean, as the end of a message: near ones of `keys`, or all of them."""
    name = key.rsplit(".", maxsplit=1)[-1]
    near = [known for known in keys if known.split(".")[-1] == name] or difflib.get_close_matches(key, keys)
    return f"; did you mean {' or '.join(near)}?" if near else f": it has {', '.join(keys)}"


def _find(file: str) -> pathlib.Path:
    """Absolute path of a config file, or of the shipped config of that name."""
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
    """Makes `configs` the package of these folders, with the `__init__` of the first folder that has one."""
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
    """Removes the modules of the current `configs` from `sys.modules` and returns them."""
    return {name: sys.modules.pop(name) for name in list(sys.modules) if f"{name}.".startswith("configs.")}
