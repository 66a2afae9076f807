"""Checkpoints: written atomically, with digests that tell damaged files from a model that has changed."""

import hashlib
import json
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

KEPT_CHECKPOINTS = 3
_DIGESTS = "sha256.json"
_STATE = "default"  # the part of a checkpoint that orbax writes
_UNFINISHED = "unfinished-"
_DAMAGED = "damaged-"
_EARLIER = "policy/"  # which the states of earlier versions had
_TOLD = 3  # differing arrays in a message
_LATER = "collections"  # a field that the states of earlier versions lack; stored only if there is something in it


class CheckpointError(RuntimeError):
    """There are checkpoints, and none can be used: all are damaged, or the model is not that of the run."""


class _DamageError(ValueError):
    """A file of a checkpoint is not as it was written."""


class Checkpoints:
    """Checkpoints of one run in one directory; the newest `KEPT_CHECKPOINTS` are kept.

    A checkpoint is written beside its place with the digests of its files, and renamed when it is complete, so a killed
    process leaves none without digests. Only a file that differs from its digest is damage.

    Args:
      directory: where they are.
      read_only: whether they belong to a run that is only read: then nothing is created, renamed or removed.
    """

    def __init__(self, directory: pathlib.Path, *, read_only: bool = False) -> None:
        self._directory = directory.absolute()
        self._read_only = read_only

    def _steps(self) -> list[int]:
        """Steps with a checkpoint, in ascending order."""
        return sorted(int(path.name) for path in self._directory.glob("*") if path.name.isdecimal())

    def save(self, step: int, state: Any) -> None:
        """Writes the state after `step` steps, unless this step is stored already."""
        checkpoint = self._directory / str(step)
        if checkpoint.exists():
            return
        for left in self._directory.glob(f"{_UNFINISHED}*"):  # by a process that was killed
            shutil.rmtree(left)
        unfinished = self._directory / f"{_UNFINISHED}{step}"
        with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
            checkpointer.save(unfinished / _STATE, args=ocp.args.StandardSave(_as_stored(state)))
        (unfinished / _DIGESTS).write_text(json.dumps(_file_digests(unfinished)))
        unfinished.rename(checkpoint)
        for old in self._steps()[:-KEPT_CHECKPOINTS]:
            leaving = (self._directory / str(old)).rename(self._directory / f"{_UNFINISHED}{old}")
            shutil.rmtree(leaving)

    def restore(self, like: Any, say: Callable[[str], None] = print, *, partly: bool = False) -> tuple[int, Any] | None:
        """Newest undamaged checkpoint as `(step, state)`, or None if there never was a checkpoint.

        A damaged checkpoint is told and passed over. Where an earlier one is found, the damaged ones are renamed, to be
        out of the way of the run that goes on, unless the checkpoints are only read.

        Args:
          like: a state of the same structure, shapes, types and shardings.
          say: receives a message for each checkpoint that is damaged or has no digests.
          partly: whether the checkpoint may have more than `like`, a dictionary of fields of the state.

        Raises:
          CheckpointError: all checkpoints are damaged; or one that is not damaged has another structure than `like`, or
            cannot be read. Nothing is renamed then.
        """
        damaged: list[int] = []
        for step in reversed(self._steps()):
            checkpoint = self._directory / str(step)
            try:
                if not _check_files(checkpoint):
                    say(f"checkpoint of step {step} has no digests, as those of earlier versions: it is not checked")
            except _DamageError as error:
                say(f"checkpoint of step {step} is damaged ({error}): trying the one before")
                damaged.append(step)
                continue
            except OSError as error:
                raise CheckpointError(f"cannot read {checkpoint}: {error.strerror}") from error
            found = self._restored(checkpoint, stored := _as_stored(like), partly=partly)
            restored = step, found if stored is like else type(like)(**found, **{_LATER: {}})
            for each in () if self._read_only else damaged:
                (self._directory / str(each)).rename(self._unused_name(f"{_DAMAGED}{each}"))
            return restored
        set_aside = sorted(path.name.removeprefix(_DAMAGED) for path in self._directory.glob(f"{_DAMAGED}*"))
        if steps := [*map(str, damaged), *set_aside]:
            raise CheckpointError(
                f"no checkpoint in {self._directory} can be read (steps {', '.join(steps)} are damaged); put back a "
                "copy, or remove the run directory to start again"
            )
        return None

    def _restored(self, checkpoint: pathlib.Path, like: Any, *, partly: bool) -> Any:
        """The state in a checkpoint that is not damaged."""
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        try:
            stored, expected = _stored_arrays(checkpoint / _STATE), _arrays(like)
            if partly:
                stored = {path: array for path, array in stored.items() if path in expected}
            if not (differing := differing_arrays(stored, expected, "the checkpoint")):
                return _read(checkpoint / _STATE, abstract, partly=partly)
        except Exception as error:  # Orbax, tensorstore and the file system raise any.
            known = (checkpoint / _DIGESTS).exists()
            state = (
                "is as it was written, but" if known else "has no digests that would tell damage, and cannot be read:"
            )
            raise CheckpointError(f"{checkpoint} {state} {_reason(error)}. Nothing was changed") from error
        run = checkpoint.parents[1]
        if any(path.startswith(_EARLIER) for path in stored):
            raise CheckpointError(
                f"the run in {run} is of an earlier version, and cannot go on: use a new directory. Its checkpoints "
                "are unchanged"
            )
        raise CheckpointError(
            f"the model is not that of the run in {run}: these shapes differ: {differing}. The checkpoints are "
            "unchanged: undo the edit of the model, or use a new directory"
        )

    def _unused_name(self, name: str) -> pathlib.Path:
        taken = sum(path.name.startswith(name) for path in self._directory.iterdir())
        return self._directory / (f"{name}-{taken}" if taken else name)


def _as_stored(state: Any) -> Any:
    """A state as it is stored."""
    if getattr(state, _LATER, None) != {}:
        return state
    return {name: value for name, value in state._asdict().items() if name != _LATER}


def _read(path: pathlib.Path, abstract: Any, *, partly: bool) -> Any:
    if not partly:
        with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
            return checkpointer.restore(path, args=ocp.args.StandardRestore(abstract))
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        restore_args = ocp.checkpoint_utils.construct_restore_args(abstract)
        some = ocp.args.PyTreeRestore(abstract, restore_args=restore_args, partial_restore=True)
        return checkpointer.restore(path, args=some)


def _file_digests(checkpoint: pathlib.Path) -> dict[str, str]:
    return {
        str(path.relative_to(checkpoint)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file() and not path.name.startswith(_DIGESTS)
    }


def _check_files(checkpoint: pathlib.Path) -> bool:
    """Whether there are digests, with which all files agree; earlier versions may have left none.

    Raises:
      _DamageError: a file is not as it was written.
      OSError: a file cannot be read.
    """
    if not (checkpoint / _DIGESTS).exists():
        return False
    try:
        expected = dict(json.loads((checkpoint / _DIGESTS).read_bytes()))
    except (ValueError, TypeError) as error:
        raise _DamageError(f"{_DIGESTS} is not as it was written") from error
    actual = _file_digests(checkpoint)
    if damaged := [name for name in expected if actual.get(name) != expected[name]] or [_DIGESTS] * (not expected):
        raise _DamageError(f"{damaged[0]} is not as it was written")
    return True


class ArrayKind(NamedTuple):
    """Shape of an array, and the name of its type where types are compared."""

    shape: tuple[int, ...]
    dtype: str = ""


def _arrays(state: Any) -> dict[str, ArrayKind]:
    """The arrays of a state by path, as orbax stores them, with PRNG keys as their data."""

    def stored(leaf: Any) -> Any:
        is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.eval_shape(jax.random.key_data, leaf) if is_key else leaf

    return _by_path(ocp.tree.serialize_tree(jax.tree.map(stored, state), keep_empty_nodes=True))


def _stored_arrays(path: pathlib.Path) -> dict[str, ArrayKind]:
    handler: Any = ocp.StandardCheckpointHandler()
    return _by_path(handler.metadata(path).tree)


def _by_path(tree: Any) -> dict[str, ArrayKind]:
    leaves = ocp.tree.to_flat_dict(tree, sep="/")
    return {
        path: ArrayKind(tuple(leaf.shape), np.dtype(leaf.dtype).name)
        for path, leaf in leaves.items()
        if hasattr(leaf, "shape")
    }


def differing_arrays(stored: Mapping[str, ArrayKind], expected: Mapping[str, ArrayKind], place: str) -> str:
    """The first few arrays whose shapes or types differ, parameters first; empty if none do.

    Args:
      stored: arrays in a file, by path.
      expected: arrays of the model, by path.
      place: name of the file, as in "the checkpoint".
    """
    differing = [path for path in {**expected, **stored} if stored.get(path) != expected.get(path)]
    differing.sort(key=lambda path: not path.startswith("params/"))

    def told(path: str) -> str:
        there, here = stored.get(path), expected.get(path)
        if there and here and there.shape == here.shape:
            return f"{path} is {there.dtype} in {place} and {here.dtype} in the model"
        return (
            f"{path} is {there.shape if there else 'absent'} in {place} and {here.shape if here else 'absent'} in the "
            "model"
        )

    more = [f"and {len(differing) - _TOLD} more"] if len(differing) > _TOLD else []
    return "; ".join([*map(told, differing[:_TOLD]), *more])


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def state_digest(state: Any) -> str:
    """SHA-256 of the values of all leaves, which is equal for bit-identical states."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(state):
        is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        values = jax.random.key_data(leaf) if is_key else leaf
        digest.update(np.ascontiguousarray(values.addressable_data(0)).tobytes())
    return digest.hexdigest()
