"""Run directory: names of its files, and the check that it belongs to a config."""

import json
import math
import pathlib
from collections.abc import Callable, Collection
from typing import Any

from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from hwcost import carbon
from launch.training.earlier_configs import of_today
from launch.training.settings import ConfigError

SUMMARY = "summary.json"
CONFIG = "config.json"
INPUTS = "inputs.json"
METRICS = "metrics.jsonl"
GENOME = "genome.json"
CHECKPOINTS = "checkpoints"
NETWORK = "network.safetensors"
WEIGHTS = "weights.safetensors"
_RESULTS = (SUMMARY, GENOME, NETWORK, WEIGHTS, f"{CHECKPOINTS}/*")
_RESULTS_OF_APQ = (f"supernet/{CHECKPOINTS}/*", "records-*.jsonl", "predictor/*", "search.json")
_OF_A_RUN = {"policy", "supernet"}  # one of these settings is in the config of every run
_TOLD = 8  # differing keys in a message

Inputs = dict[str, str]
"""Digests of what goes into a run (launch/training/provenance.py), by key of the config, or by what they are of."""

SUMMARY_KEYS = {
    "arithmetic",
    "base",
    "bit_identical_on",
    "budgets",
    "call",
    "compile_seconds",
    "config",
    "cost",
    "cost_name",
    "cost_unit",
    "decisions",
    "device",
    "footprint",
    "frozen_from_step",
    "genome",
    "inputs",
    "kind",
    "layers",
    "name",
    "outside",
    "policy",
    "policy_entropy",
    "quality",
    "rank_correlations",
    "reading",
    "relative_cost",
    "scores",
    "search_step_compilations",
    "seconds",
    "seed",
    "state_sha256",
    "steps_per_second",
    "target",
    "versions",
}
"""What a summary has beside qualities, which are stored under their own names."""

CODE = "code of "  # begins the keys of digests of code

# Keys that do not change what a run computes: they may differ when it is resumed.
_FREE_KEYS = (
    "data.data_dir",
    "data.download",
    "data.file",
    "data.workers",
    *(f"footprint.{key}" for key in carbon.Rates._fields),
    "baselines",
    "log_every",
    "checkpoint_every",
)


def claim_directory(
    directory: pathlib.Path,
    config: ConfigDict,
    inputs: Inputs,
    *,
    say: Callable[[str], None],
    free: Collection[str] = (),
    later: Collection[str] = (),
) -> None:
    """Creates `directory` for runs of `config`, or checks that it was created for this config and these inputs.

    The path of a file whose digest is known may differ.

    A directory without any result, as a run leaves that was refused before its first checkpoint, is anyone's.

    Args:
      directory: run directory.
      config: config of the run.
      inputs: digests of what goes into it.
      say: receives a message if the directory is of an earlier version, without digests.
      free: keys that may differ from the stored config, in addition to those that change no result.
      later: keys of inputs that are not compared here.

    Raises:
      ConfigError: the directory belongs to another config or to other inputs; the message names the keys that differ.
        Or it has results of nobody knows what, or is a file.
    """
    if directory.exists() and not directory.is_dir():
        raise ConfigError(f"--workdir={directory} is a file: expected a directory, which may be new")
    ours = json.loads(config.to_json_best_effort())
    path = directory / CONFIG
    there_are = sorted(each.name for name in (*_RESULTS, *_RESULTS_OF_APQ) for each in directory.glob(name))
    theirs = read_json(path) if path.exists() else None
    if bool(there_are) if theirs is None else not theirs.keys() & _OF_A_RUN:
        others = ", ".join(there_are or [CONFIG])
        raise ConfigError(f"{directory} has {others}, but no {CONFIG} of a run: expected a new directory as --workdir")
    if theirs is None or not there_are:
        directory.mkdir(parents=True, exist_ok=True)
        write_json(path, ours)
        write_json(directory / INPUTS, inputs)
        return
    stored = read_inputs(directory)
    files = inputs.keys() & (stored or {}).keys()
    there, here = (_flat(config, files) for config in (theirs, ours))
    differing = [
        f"{key} is {there.get(key)!r} there and {here.get(key)!r} here"
        for key in sorted(there.keys() | here.keys())
        if there.get(key) != here.get(key) and key not in (*_FREE_KEYS, *free)
    ]
    if differing:
        more = [f"and {len(differing) - _TOLD} more"] if len(differing) > _TOLD else []
        told = "; ".join([*differing[:_TOLD], *more])
        raise ConfigError(f"{directory} holds a run of another config: {told}. Use another --workdir")
    if stored is None:
        say(f"{directory} tells no digests of its inputs, as earlier versions: whether they are these is not known")
    else:
        check_inputs(directory, stored, inputs, but=later)


def _flat(config: dict[str, Any], files: Collection[str]) -> dict[str, Any]:
    """A config by dotted keys, without the paths of files, which are compared by their digests."""

    def without(value: Any, key: str) -> Any:
        if isinstance(value, dict):
            return {name: without(below, f"{key}.{name}" if key else name) for name, below in value.items()}
        if isinstance(value, list):
            return [without(below, f"{key}.{number}") for number, below in enumerate(value)]
        return None if key in files else value

    return flatten_dict(without(of_today(config), ""), sep=".")


def read_inputs(directory: pathlib.Path) -> Inputs | None:
    """Digests of what a run was made from; None if it is of an earlier version.

    Raises:
      ConfigError: they cannot be read.
    """
    path = directory / INPUTS
    try:
        return dict(json.loads(path.read_text())) if path.exists() else None
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error


def check_inputs(place: pathlib.Path, stored: Inputs, inputs: Inputs, *, but: Collection[str] = ()) -> None:
    """Checks that what is in `place` was made from these inputs.

    Args:
      place: what was made.
      stored: digests of what it was made from.
      inputs: digests of what is there now.
      but: keys that are not compared.

    Raises:
      ConfigError: an input differs; the message has both digests.
    """
    differing = [
        f"{key} had the digest {stored.get(key, '(none)')}, and has {inputs.get(key, '(none)')} now"
        for key in sorted({*stored, *inputs} - {*but})
        if stored.get(key) != inputs.get(key)
    ]
    if differing:
        raise ConfigError(
            f"{place} was made from other inputs: {'; '.join(differing)}. Put back what it was made from, use another "
            f"--workdir, or remove {place} to make it anew"
        )


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Reads a JSON file that `write_json` wrote.

    Raises:
      ConfigError: it cannot be read, is no JSON, as a file that was cut short, or holds something else.
    """
    try:
        document = json.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is damaged: {error}") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{path} is damaged: expected a JSON object, got {type(document).__name__}")
    return document


def write_json(path: pathlib.Path, document: dict[str, Any]) -> None:
    """Writes a JSON file atomically; numbers that are not finite, which JSON does not have, become null."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(_finite(document), indent=1, allow_nan=False) + "\n")
    temporary.rename(path)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inside) for key, inside in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inside) for inside in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
