"""Records: genomes and the accuracies of their networks, which predictors learn from (APQ, §4)."""

import hashlib
import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from apq_jax.space import ArchitectureSpace


def float_genomes(space: ArchitectureSpace, count: int, key: jax.Array) -> np.ndarray:
    """int32[count, D]: random networks, of which bits do not matter and are the widest; more go on from fewer."""

    def one(number: jax.Array) -> jax.Array:
        return space.with_bits(space.sample(jax.random.fold_in(key, number)), space.largest)

    return np.asarray(jax.vmap(one)(jnp.arange(count)))


def quantized_genomes(space: ArchitectureSpace, count: int, key: jax.Array, *, policies: int) -> np.ndarray:
    """int32[count, D]: half random networks and bits, half random networks with `policies` bit policies each (§4).

    In turn, so that the first ones are of both halves alike, and more go on from fewer.
    """
    keys = jax.random.split(key, 3)

    def one(number: jax.Array) -> jax.Array:
        both = space.sample(jax.random.fold_in(keys[0], number))
        network = space.sample(jax.random.fold_in(keys[1], number // (2 * policies)))
        bits = space.sample(jax.random.fold_in(keys[2], number))
        return jnp.where(number % 2 == 0, both, space.mended(space.with_bits(network, bits)))

    return np.asarray(jax.vmap(one)(jnp.arange(count)))


class RecordError(ValueError):
    """A file of records that cannot be used; the message names the line."""


class Record(NamedTuple):
    """A genome, int32[D], and the accuracy of its network."""

    genome: np.ndarray
    accuracy: float


class RecordFile:
    """Records as JSON lines, appended as they come, each with a checksum; the first line says what they are of."""

    def __init__(self, path: pathlib.Path, head: dict[str, Any]) -> None:
        """Opens the file, or starts it.

        Raises:
          RecordError: it holds records of something else, or a line before the last is damaged.
        """
        self.records: list[Record] = []
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        if lines and not lines[-1].endswith("\n"):
            lines.pop()  # the line that a kill cut off
        if lines:
            found_head, self.records = _parsed(path, lines)
            if found_head != head:
                raise RecordError(f"{path} holds records of {found_head}, not of {head}: give another --workdir")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(lines) or json.dumps(head) + "\n")
        self._file = path.open("a")

    def append(self, records: Sequence[Record]) -> None:
        """Keeps records."""
        self.records += records
        self._file.writelines(_line(record) for record in records)
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _line(record: Record) -> str:
    body = {"genome": np.asarray(record.genome).tolist(), "accuracy": record.accuracy}
    return json.dumps(body | {"sha256": _digest(body)}) + "\n"


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body).encode()).hexdigest()[:16]


def _parsed(path: pathlib.Path, lines: Sequence[str]) -> tuple[dict[str, Any], list[Record]]:
    records = []
    for number, line in enumerate(lines[1:], start=2):
        try:
            document = json.loads(line)
            digest = document.pop("sha256")
            if digest != _digest(document):
                raise ValueError("its checksum is another")
            records.append(Record(np.asarray(document["genome"], np.int32), float(document["accuracy"])))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RecordError(f"{path}, line {number}: {error}") from error
    try:
        return json.loads(lines[0]), records
    except ValueError as error:
        raise RecordError(f"{path}, line 1: {error}") from error


def read(path: pathlib.Path) -> tuple[dict[str, Any], list[Record]]:
    """What a file's records are of, and the records.

    Raises:
      RecordError: no such file, or a damaged line.
    """
    try:
        lines = path.read_text().splitlines(keepends=True)
    except OSError as error:
        raise RecordError(f"cannot read records from {path}: {error.strerror}") from error
    return _parsed(path, [line for line in lines if line.endswith("\n")])
