"""What went into a run: digests of the files, the data and the code that its config names.

A run keeps them beside its config and in its summary. A path may change, since a moved file is the same file; what it
holds may not.
"""

import ast
import contextlib
import functools
import hashlib
import json
import os
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from launch import data
from launch.training.run_directory import CODE, NETWORK, Inputs, check_inputs, read_inputs

DATA = "data"  # the key of what a data set says of its content
_OURS = ("apq_jax", "aqt_like", "fliqs_jax", "hwcost", "launch")
_FILES = ("file", "genome", "init_from")  # last parts of keys that name files, whatever these are called
_TEACHER = "distillation.teacher"
_CHECKPOINT = "init_from"  # which may be a folder
_INTERPOLATED = "interpolated:"
_TRAINING_ONLY = ("init_from", _TEACHER)  # which a finished network does without


def inputs_of(config: ConfigDict, source: data.Source) -> Inputs:
    """Digests of all that goes into a run of a config on a data set.

    They are those of the contents of files that settings name; of the network of a teacher; of code of the user's,
    without its comments; and what `content` says of a data set that has it.
    """
    found: Inputs = {}
    for key, value in _texts(json.loads(config.to_json_best_effort())):
        if path := _file_of(key, value):
            found[key] = value[: len(value) - len(value.removeprefix(_INTERPOLATED))] + file_digest(path)
        elif code := _code_of(value):
            found[f"{CODE}{key}"] = code
    if content := getattr(source, "content", None):
        found[DATA] = content
    return found


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """All texts of a JSON document, by keys such as `data.file` and `budgets.0.cost`."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, below in inside:
        yield from _texts(below, f"{key}.{name}" if key else str(name))
    if isinstance(value, str):
        yield key, value


def _file_of(key: str, value: str) -> pathlib.Path | None:
    """The file that a setting names; that of its network if the setting is a teacher."""
    name = f"{value}/{NETWORK}" if key == _TEACHER else value.removeprefix(_INTERPOLATED)
    last = key.rsplit(".", maxsplit=1)[-1]
    likely = last in _FILES or "." in name or "/" in name
    if last == _CHECKPOINT and os.path.isdir(name):  # noqa: PTH112 (False for any text)
        return pathlib.Path(name)
    return pathlib.Path(name) if likely and os.path.isfile(name) else None  # noqa: PTH113


def file_digest(path: pathlib.Path) -> str:
    """SHA-256 of what a file holds, as `sha256sum` prints it, or of all in a folder; files are read once as long as
    size and time stay."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        return hashlib.sha256("".join(f"{f.relative_to(path)} {file_digest(f)}" for f in files).encode()).hexdigest()
    status = path.stat()
    return _sha256_of(path.absolute(), status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _sha256_of(path: pathlib.Path, size: int, changed: int) -> str:
    del size, changed
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _code_of(value: str) -> str | None:
    """Digest of the file of `package.module:function`, without its comments; None for ours, and for any other text."""
    module, separator, _ = value.partition(":")
    place = getattr(sys.modules.get(module), "__file__", None) if separator else None
    if place is None or module.split(".")[0] in _OURS or not os.path.isfile(place):  # noqa: PTH113
        return None
    code = pathlib.Path(place).read_bytes()
    with contextlib.suppress(SyntaxError, ValueError):  # of a compiled module
        code = ast.unparse(ast.parse(code)).encode()
    return hashlib.sha256(code).hexdigest()


def find_inputs(directory: pathlib.Path, config: ConfigDict) -> None:
    """Changes paths in the config of a finished run to where its files are now.

    That is where the config says, or beside the directory of the run, as in a work directory that was moved or copied.

    Raises:
      ConfigError: a file is where the config says, but not as it was for the run.
    """
    for key, stored in (read_inputs(directory) or {}).items():
        value = flatten_dict(config.to_dict(), sep=".").get(key)  # None if it is no setting, or one in a tuple
        if not isinstance(value, str) or value.startswith(_INTERPOLATED):
            continue
        found = {
            place: file_digest(path)
            for place in (value, str(directory.parent / pathlib.Path(value).name))
            if (path := _file_of(key, place))
        }
        if same := [place for place, digest in found.items() if digest == stored]:
            config.update_from_flattened_dict({key: same[0]})
        elif value in found and key not in _TRAINING_ONLY:
            check_inputs(directory, {key: stored}, {key: found[value]})
    if config.get("init_from") and not os.path.exists(config.init_from):  # noqa: PTH110
        # A finished network is not made from it again.
        config.update({"init_from": "", "init_prefix": "", "init_anew": ()})


def check_data(directory: pathlib.Path, source: data.Source) -> None:
    """Checks that a data set has the content that it had for a finished run.

    Raises:
      ConfigError: it has not.
    """
    stored, content = read_inputs(directory) or {}, getattr(source, "content", None)
    if content and DATA in stored:
        check_inputs(directory, {DATA: stored[DATA]}, {DATA: content})
