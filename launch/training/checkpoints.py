"""Checkpoints: written atomically, with digests that detect damaged files."""

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


class CheckpointError(RuntimeError):
    """All checkpoints are damaged."""


class Checkpoints:
    """Checkpoints of one run in one directory; the newest `KEPT_CHECKPOINTS` are kept.

    Orbax writes a checkpoint to a temporary directory and renames it, so a killed process leaves no partial checkpoint.
    Digests of its files are added afterwards; they detect a damaged checkpoint before orbax reads it.
    """

    def __init__(self, directory: pathlib.Path) -> None:
        self._directory = directory.absolute()
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(
            max_to_keep=KEPT_CHECKPOINTS, enable_async_checkpointing=False, cleanup_tmp_directories=True
        )
        return ocp.CheckpointManager(self._directory, options=options)

    def save(self, step: int, state: Any) -> None:
        """Writes the state after `step` steps, unless this step is stored already."""
        if step in self._manager.all_steps():
            return
        self._manager.save(step, args=ocp.args.StandardSave(state))
        checkpoint = self._directory / str(step)
        temporary = checkpoint / f"{_DIGESTS}.tmp"
        temporary.write_text(json.dumps(_file_digests(checkpoint)))
        temporary.rename(checkpoint / _DIGESTS)

    def restore(self, like: Any, say: Callable[[str], None] = print) -> tuple[int, Any] | None:
        """Newest readable checkpoint as `(step, state)`, or None if there are no checkpoints.

        Args:
          like: a state of the same structure, shapes and shardings.
          say: receives a message for each damaged checkpoint, which is renamed and skipped.

        Raises:
          CheckpointError: there are checkpoints, but all of them are damaged.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        for step in steps:
            try:
                _check_files(self._directory / str(step))
                return step, self._manager.restore(step, args=ocp.args.StandardRestore(abstract))
            except Exception as error:  # Damage causes any exception of orbax, tensorstore or json.
                reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
                say(f"checkpoint of step {step} is damaged ({reason}): trying the one before")
                self._manager.close()
                (self._directory / str(step)).rename(self._unused_name(f"damaged-{step}"))
                self._manager = self._open()
        if steps:
            raise CheckpointError(
                f"no checkpoint in {self._directory} can be read (steps {', '.join(map(str, steps))} are damaged); "
                "remove the run directory to start again"
            )
        return None

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


def _check_files(checkpoint: pathlib.Path) -> None:
    """Compares files with their digests, which are missing if the process was killed right after orbax had finished."""
    if not (checkpoint / _DIGESTS).exists():
        return
    expected, actual = json.loads((checkpoint / _DIGESTS).read_text()), _file_digests(checkpoint)
    if damaged := [name for name in expected if actual.get(name) != expected[name]]:
        raise ValueError(f"{damaged[0]} is not as it was written")


def state_digest(state: Any) -> str:
    """SHA-256 of the values of all leaves, which is equal for bit-identical states."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(state):
        is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        values = jax.random.key_data(leaf) if is_key else leaf
        digest.update(np.ascontiguousarray(values.addressable_data(0)).tobytes())
    return digest.hexdigest()
