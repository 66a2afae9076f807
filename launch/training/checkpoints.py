"""Checkpoints that survive anything: written whole or not at all, with digests that tell damage."""

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
    """No checkpoint could be read."""


class Checkpoints:
    """Checkpoints of one state in one directory, the newest few kept.

    Orbax writes each into a temporary directory and renames it, so that a kill leaves whole checkpoints only. Digests
    of its files, written into it afterwards, tell a damaged one before orbax reads it.
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
        """Writes the state after `step` steps; does nothing where that step is stored already."""
        if step in self._manager.all_steps():
            return
        self._manager.save(step, args=ocp.args.StandardSave(state))
        checkpoint = self._directory / str(step)
        temporary = checkpoint / f"{_DIGESTS}.tmp"
        temporary.write_text(json.dumps(_file_digests(checkpoint)))
        temporary.rename(checkpoint / _DIGESTS)

    def restore(self, like: Any, say: Callable[[str], None] = print) -> tuple[int, Any] | None:
        """The newest readable state and its step; None where there are no checkpoints.

        Args:
          like: a state of the same structure, shapes and shardings.
          say: is told of each damaged checkpoint, which is renamed and passed over.

        Raises:
          CheckpointError: there are checkpoints, but every one is damaged.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        for step in steps:
            try:
                _check_files(self._directory / str(step))
                return step, self._manager.restore(step, args=ocp.args.StandardRestore(abstract))
            except Exception as error:  # Damage shows as any exception of orbax, tensorstore or json.
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
        """Releases orbax's resources."""
        self._manager.close()


def _file_digests(checkpoint: pathlib.Path) -> dict[str, str]:
    return {
        str(path.relative_to(checkpoint)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file() and not path.name.startswith(_DIGESTS)
    }


def _check_files(checkpoint: pathlib.Path) -> None:
    """Compares files with their digests; a kill may have come before those were written, and after orbax was done."""
    if not (checkpoint / _DIGESTS).exists():
        return
    expected, found = json.loads((checkpoint / _DIGESTS).read_text()), _file_digests(checkpoint)
    if wrong := [name for name in expected if found.get(name) != expected[name]]:
        raise ValueError(f"{wrong[0]} is not as it was written")


def state_digest(state: Any) -> str:
    """SHA-256 over the values of all leaves: equal for runs that are bit-identical."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(state):
        is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        values = jax.random.key_data(leaf) if is_key else leaf
        digest.update(np.ascontiguousarray(values.addressable_data(0)).tobytes())
    return digest.hexdigest()
