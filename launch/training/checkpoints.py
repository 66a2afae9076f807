"""Checkpoints: written atomically, with digests that tell damaged files from a model that has changed."""

import hashlib
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

KEPT_CHECKPOINTS = 3
_DIGESTS = "sha256.json"
_DAMAGED = "damaged-"
_EARLIER = "policy/"  # which the states of earlier versions had
_TOLD = 3  # differing shapes in a message
# The arrays of a state by path, with their shapes.
_Shapes = dict[str, tuple[int, ...]]


class CheckpointError(RuntimeError):
    """There are checkpoints, and none can be used: all are damaged, or the model is not that of the run."""


class Checkpoints:
    """Checkpoints of one run in one directory; the newest `KEPT_CHECKPOINTS` are kept.

    Orbax writes a checkpoint to a temporary directory and renames it, so a killed process leaves no partial checkpoint.
    Digests of its files are added afterwards; they detect a damaged checkpoint before orbax reads it.

    Args:
      directory: where they are.
      read_only: whether they belong to a run that is only read: then nothing is created, renamed or removed.
    """

    def __init__(self, directory: pathlib.Path, *, read_only: bool = False) -> None:
        self._directory = directory.absolute()
        self._read_only = read_only
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(
            max_to_keep=KEPT_CHECKPOINTS,
            enable_async_checkpointing=False,
            create=not self._read_only,
            cleanup_tmp_directories=not self._read_only,
        )
        return ocp.CheckpointManager(self._directory, item_handlers=ocp.StandardCheckpointHandler(), options=options)

    def save(self, step: int, state: Any) -> None:
        """Writes the state after `step` steps, unless this step is stored already."""
        if step in self._manager.all_steps():
            return
        self._manager.save(step, args=ocp.args.StandardSave(state))
        checkpoint = self._directory / str(step)
        temporary = checkpoint / f"{_DIGESTS}.tmp"
        temporary.write_text(json.dumps(_file_digests(checkpoint)))
        temporary.rename(checkpoint / _DIGESTS)

    def restore(self, like: Any, say: Callable[[str], None] = print, *, partly: bool = False) -> tuple[int, Any] | None:
        """Newest undamaged checkpoint as `(step, state)`, or None if there never was a checkpoint.

        A damaged checkpoint is skipped. It is renamed, too, unless the checkpoints are only read.

        Args:
          like: a state of the same structure, shapes and shardings.
          say: receives a message for each damaged checkpoint.
          partly: whether the checkpoint may have more than `like`, a dictionary of fields of the state.

        Raises:
          CheckpointError: all checkpoints are damaged; or an undamaged one has other shapes than `like`, or cannot be
            read for another reason. Undamaged checkpoints are never renamed.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        for step in steps:
            checkpoint, intact = self._directory / str(step), False
            try:
                intact = _check_files(checkpoint)
                stored, expected = _shapes_by_path(self._manager.item_metadata(step).tree), _shapes(like)
                if partly:
                    stored = {path: shape for path, shape in stored.items() if path in expected}
                if not (differences := _differences(stored, expected)):
                    return step, self._read(step, abstract, partly=partly)
            except Exception as error:  # Damage causes any exception of orbax, tensorstore or json.
                if intact:
                    raise CheckpointError(f"{checkpoint} is as it was written, but {_reason(error)}") from error
                self._set_aside(step, error, say)
            else:
                if any(path.startswith(_EARLIER) for path in stored):
                    raise CheckpointError(
                        f"the run in {self._directory.parent} is of an earlier version, and cannot go on: use a new "
                        "directory. Its checkpoints are unchanged"
                    )
                raise CheckpointError(
                    f"the model is not that of the run in {self._directory.parent}: these shapes differ: "
                    f"{differences}. The checkpoints are unchanged: undo the edit of the model, or use a new directory"
                )
        damaged = [str(step) for step in steps] or self._set_aside_before()
        if damaged:
            raise CheckpointError(
                f"no checkpoint in {self._directory} can be read (steps {', '.join(damaged)} are damaged); "
                "remove the run directory to start again"
            )
        return None

    def _read(self, step: int, abstract: Any, *, partly: bool) -> Any:
        if not partly:
            return self._manager.restore(step, args=ocp.args.StandardRestore(abstract))
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            restore_args = ocp.checkpoint_utils.construct_restore_args(abstract)
            some = ocp.args.PyTreeRestore(abstract, restore_args=restore_args, partial_restore=True)
            return checkpointer.restore(self._directory / str(step) / "default", args=some)

    def _set_aside(self, step: int, error: Exception, say: Callable[[str], None]) -> None:
        """Tells that a checkpoint is damaged, and renames it unless checkpoints are only read."""
        say(f"checkpoint of step {step} is damaged ({_reason(error)}): trying the one before")
        if self._read_only:
            return
        self._manager.close()
        (self._directory / str(step)).rename(self._unused_name(f"{_DAMAGED}{step}"))
        self._manager = self._open()

    def _set_aside_before(self) -> list[str]:
        """Names of the steps whose checkpoints were renamed earlier."""
        return sorted(path.name.removeprefix(_DAMAGED) for path in self._directory.glob(f"{_DAMAGED}*"))

    def _unused_name(self, name: str) -> pathlib.Path:
        taken = sum(path.name.startswith(name) for path in self._directory.iterdir())
        return self._directory / (f"{name}-{taken}" if taken else name)

    def close(self) -> None:
        """Releases the resources of orbax."""
        self._manager.close()


def _file_digests(checkpoint: pathlib.Path) -> dict[str, str]:
    return {
        str(path.relative_to(checkpoint)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file() and not path.name.startswith(_DIGESTS)
    }


def _check_files(checkpoint: pathlib.Path) -> bool:
    """Whether there are digests, with which all files agree; a process killed right after orbax leaves none.

    Raises:
      ValueError: a file is not as it was written.
    """
    if not (checkpoint / _DIGESTS).exists():
        return False
    expected, actual = json.loads((checkpoint / _DIGESTS).read_text()), _file_digests(checkpoint)
    if damaged := [name for name in expected if actual.get(name) != expected[name]]:
        raise ValueError(f"{damaged[0]} is not as it was written")
    return True


def _shapes(state: Any) -> _Shapes:
    """Shapes of a state as orbax stores it, with PRNG keys as their data."""

    def stored(leaf: Any) -> Any:
        is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.eval_shape(jax.random.key_data, leaf) if is_key else leaf

    return _shapes_by_path(ocp.tree.serialize_tree(jax.tree.map(stored, state), keep_empty_nodes=True))


def _shapes_by_path(tree: Any) -> _Shapes:
    leaves = ocp.tree.to_flat_dict(tree, sep="/")
    return {path: tuple(leaf.shape) for path, leaf in leaves.items() if hasattr(leaf, "shape")}


def _differences(stored: _Shapes, expected: _Shapes) -> str:
    """The first few arrays whose shapes differ, parameters first; empty if none do."""
    differing = [path for path in {**expected, **stored} if stored.get(path) != expected.get(path)]
    differing.sort(key=lambda path: not path.startswith("params/"))
    told = [
        f"{path} is {stored.get(path, 'absent')} in the checkpoint and {expected.get(path, 'absent')} in the model"
        for path in differing[:_TOLD]
    ]
    more = [f"and {len(differing) - _TOLD} more"] if len(differing) > _TOLD else []
    return "; ".join(told + more)


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
