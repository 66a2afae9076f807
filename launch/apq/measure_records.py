"""The records step: measures subnetworks in float and under quantisation (APQ, §4; Algorithm 1, line 1)."""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from rich.progress import track

from apq_jax import records
from launch.apq import record_task, train_supernet
from launch.apq.pipeline import RECORD_FILES, SUMMARY, SUPERNET, Pipeline
from launch.apq.workers import Mapper, in_process
from launch.journal import Journal, JournalError, read_journal


def run(pipeline: Pipeline, mapper: Mapper = in_process, counts: Mapping[str, int] | None = None) -> None:
    """Measures subnetworks until there are enough records of each kind; existing records are kept.

    Args:
      pipeline: the experiment.
      mapper: the workers that measure; the records do not depend on them.
      counts: total number of records by kind, instead of the numbers in the config.

    Raises:
      JournalError: a file of records was made with another once-for-all network or other settings, or holds other
        genomes than those drawn. Lines that are no good are told, and their records measured again.
    """
    config = pipeline.config.records
    state, batches = None, None
    for kind, count in (counts or {kind: config[kind] for kind in RECORD_FILES}).items():
        path = pipeline.workdir / RECORD_FILES[kind]
        with Journal(path, _head(pipeline, kind), option="--workdir", say=pipeline.note) as journal:
            genomes = _drawn(pipeline, kind, max([count, *(number + 1 for number in journal.numbered)]))
            _check_records(path, journal.numbered, genomes)
            missing = [number for number in range(count) if number not in journal.numbered]
            if not missing:
                pipeline.note(f"already complete: {len(journal.numbered)} {kind} records")
                continue
            if state is None or batches is None:
                state = train_supernet.read_supernet(pipeline)
                batches = record_task.read_batches(pipeline, pipeline.open_data())
            task = record_task.make_task(kind, pipeline, state, batches)
            accuracies = mapper(record_task.make_measure, task, list(genomes[missing]))
            for number, accuracy in track(
                zip(missing, accuracies, strict=True), f"{kind} records", total=len(missing), console=pipeline.console
            ):
                journal.append(records.entry(genomes[number], accuracy))
                pipeline.stop_if_asked()


def _head(pipeline: Pipeline, kind: str) -> dict[str, Any]:
    """What records of a kind belong to: the numbers of records are left out, so that more can be added later."""
    settings = {key: value for key, value in pipeline.config.records.to_dict().items() if key not in RECORD_FILES}
    supernet = pipeline.read(f"{SUPERNET}/{SUMMARY}")["state_sha256"]
    quantizer = {"quantizer": pipeline.config.quantizer} if kind == "quantized" else {}
    return {"kind": kind, "supernet_sha256": supernet, "settings": settings, **quantizer}


def _drawn(pipeline: Pipeline, kind: str, count: int) -> np.ndarray:
    """The genomes of the first records of a kind, int32[count, D]."""
    keys = jax.random.split(jax.random.key(pipeline.config.seed + 1))
    if kind == "float":
        return records.float_genomes(pipeline.space, count, keys[0])
    return records.quantized_genomes(pipeline.space, count, keys[1], policies=pipeline.config.records.policies)


def _check_records(path: pathlib.Path, numbered: Mapping[int, dict[str, Any]], genomes: np.ndarray) -> None:
    """Checks that records by number are of the genomes drawn, int32[N, D], and hold an accuracy.

    Raises:
      JournalError: one does not.
    """
    for number, record in numbered.items():
        if record.get("genome") != genomes[number].tolist():
            raise JournalError(
                f"{path}, record {number}: it is not of the genome that was drawn, as after a line was removed: "
                "restore the file, or remove it to measure its records anew"
            )
        accuracy = record.get("accuracy")
        if not isinstance(accuracy, float | int) or not 0 <= accuracy <= 1:
            raise JournalError(f"{path}, record {number}: accuracy {accuracy}: expected a share, 0…1")


def read_records(pipeline: Pipeline, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Genomes, int32[N, D], and accuracies, float32[N], of the records of a kind.

    Raises:
      JournalError: there are no records, they are of another once-for-all network or of other settings, or a line is no
        good or missing.
    """
    path = pipeline.workdir / RECORD_FILES[kind]
    if not path.exists():
        raise JournalError(f"{path} is missing: it is made by `python -m launch.apq records`")
    _, entries = read_journal(path, _head(pipeline, kind), option="--workdir")
    if not entries:
        raise JournalError(f"{path} holds no records")
    _check_records(path, dict(enumerate(entries)), _drawn(pipeline, kind, len(entries)))
    return records.stacked(entries)
