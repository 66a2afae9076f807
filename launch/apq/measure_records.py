"""Measures networks of the once-for-all network, in float and under quantisation: what predictors learn from (§4)."""

from collections.abc import Mapping
from functools import partial

import jax
import numpy as np
from rich.progress import track

from apq_jax import records
from launch.apq import record_task, train_supernet
from launch.apq.pipeline import RECORD_FILES, SUMMARY, SUPERNET, Pipeline
from launch.apq.workers import Mapped, in_process
from launch.journal import Journal, JournalError, read_journal


def run(pipeline: Pipeline, mapped: Mapped = in_process, counts: Mapping[str, int] | None = None) -> None:
    """Measures as many networks of each kind as there shall be; those that are there are not measured again.

    Args:
      pipeline: the experiment.
      mapped: who measures; records are the same whoever it is.
      counts: how many records there shall be of each of the `RECORD_FILES`; the config says, unless this does.

    Raises:
      JournalError: a file of records is damaged or of something else.
    """
    config, space = pipeline.config.records, pipeline.space
    supernet_digest = pipeline.read(f"{SUPERNET}/{SUMMARY}")["state_sha256"]
    keys = jax.random.split(jax.random.key(pipeline.config.seed + 1))
    drawn = {
        "float": partial(records.float_genomes, key=keys[0]),
        "quantized": partial(records.quantized_genomes, key=keys[1], policies=config.policies),
    }
    state, batches = None, None
    for kind, count in (counts or {kind: config[kind] for kind in RECORD_FILES}).items():
        # How many there are to be is no part of what they are: more may be asked for later.
        settings = {key: value for key, value in config.to_dict().items() if key not in RECORD_FILES}
        head = {"kind": kind, "supernet_sha256": supernet_digest, "settings": settings}
        with Journal(pipeline.workdir / RECORD_FILES[kind], head, option="--workdir") as journal:
            left = drawn[kind](space, count)[len(journal.entries) :]
            if not len(left):
                pipeline.note(f"already complete: {len(journal.entries)} {kind} records")
                continue
            if state is None or batches is None:
                state = train_supernet.read_supernet(pipeline)
                batches = record_task.read_batches(pipeline, pipeline.open_data())
            task = record_task.make_task(kind, pipeline, state, batches)
            reached = mapped(record_task.make_measure, task, list(left))
            for genome, value in track(
                zip(left, reached, strict=True), f"{kind} records", total=len(left), console=pipeline.console
            ):
                journal.append(records.entry(genome, value))


def read_records(pipeline: Pipeline, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Genomes int32[N, D] and accuracies float32[N].

    Raises:
      JournalError: none are there, or a line is damaged.
    """
    path = pipeline.workdir / RECORD_FILES[kind]
    _, entries = read_journal(path)
    if not entries:
        raise JournalError(f"{path} holds no records")
    return records.stacked(entries)
