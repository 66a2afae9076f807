"""What a run stands on: the device mesh, checkpoints that survive anything, and orderly interruption."""

import contextlib
import hashlib
import json
import pathlib
import signal
import types
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

KEPT_CHECKPOINTS = 3
_DIGESTS = "sha256.json"


class CheckpointError(RuntimeError):
    """No checkpoint could be read."""


def data_mesh() -> Mesh:
    """One mesh axis, `"data"`, over all devices."""
    return jax.make_mesh((len(jax.devices()),), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device: all of the search state, so that all devices train under the same genome."""
    return NamedSharding(mesh, PartitionSpec())


def split_batch(mesh: Mesh) -> NamedSharding:
    """An equal part of the batch axis on each device."""
    return NamedSharding(mesh, PartitionSpec("data"))


def place_batch(batch: dict[str, np.ndarray], sharding: NamedSharding) -> dict[str, jax.Array]:
    """A host batch, equal on every process, as arrays of which each device holds its part."""
    return {
        name: jax.make_array_from_callback(array.shape, sharding, lambda index, array=array: array[index])
        for name, array in batch.items()
    }


def compile_step(step: Callable, mesh: Mesh, state: Any, *batches: dict[str, jax.ShapeDtypeStruct]) -> Callable:
    """Compiles `step(state, *batches) -> (state, metrics)`, `state` donated, once and for all.

    Arguments are given by shapes and types. The result cannot compile again: other shapes are an error.
    """
    whole, parts = replicated(mesh), split_batch(mesh)
    jitted = jax.jit(
        step, donate_argnums=0, in_shardings=(whole, *(parts for _ in batches)), out_shardings=(whole, whole)
    )
    return jitted.lower(state, *batches).compile()


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


class StopRequested:
    """Whether, and by which signal, this process was asked to stop."""

    signal_number: int | None = None

    def __bool__(self) -> bool:
        return self.signal_number is not None


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequested]:
    """Turns the first SIGTERM or SIGINT into a request that the loop heeds; a second one acts as usual."""
    request = StopRequested()

    def note(number: int, frame: types.FrameType | None) -> None:
        del frame
        request.signal_number = number
        signal.signal(number, before[number])

    before: dict[int, Any] = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
