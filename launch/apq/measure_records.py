"""The records step: measures subnetworks in float and under quantisation (APQ, §4; Algorithm 1, line 1)."""

from collections.abc import Mapping
from functools import partial

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
      JournalError: a file of records is damaged, or was made with another once-for-all network or other settings.
    """
    config, space = pipeline.config.records, pipeline.space
    supernet_digest = pipeline.read(f"{SUPERNET}/{SUMMARY}")["state_sha256"]
    keys = jax.random.split(jax.random.key(pipeline.config.seed + 1))
    sample = {
        "float": partial(records.float_genomes, key=keys[0]),
        "quantized": partial(records.quantized_genomes, key=keys[1], policies=config.policies),
    }
    state, batches = None, None
    for kind, count in (counts or {kind: config[kind] for kind in RECORD_FILES}).items():
        # The head leaves out the numbers of records, so that more can be added later.
        settings = {key: value for key, value in config.to_dict().items() if key not in RECORD_FILES}
        head = {"kind": kind, "supernet_sha256": supernet_digest, "settings": settings}
        with Journal(pipeline.workdir / RECORD_FILES[kind], head, option="--workdir") as journal:
            missing = sample[kind](space, count)[len(journal.entries) :]
            if not len(missing):
                pipeline.note(f"already complete: {len(journal.entries)} {kind} records")
                continue
            if state is None or batches is None:
                state = train_supernet.read_supernet(pipeline)
                batches = record_task.read_batches(pipeline, pipeline.open_data())
            task = record_task.make_task(kind, pipeline, state, batches)
            accuracies = mapper(record_task.make_measure, task, list(missing))
            for genome, accuracy in track(
                zip(missing, accuracies, strict=True), f"{kind} records", total=len(missing), console=pipeline.console
            ):
                journal.append(records.entry(genome, accuracy))
                pipeline.stop_if_asked()


def read_records(pipeline: Pipeline, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Genomes, int32[N, D], and accuracies, float32[N], of the records of a kind.

    Raises:
      JournalError: there are no records, or a line is damaged.
    """
    path = pipeline.workdir / RECORD_FILES[kind]
    if not path.exists():
        raise JournalError(f"{path} is missing: it is made by `python -m launch.apq records`")
    _, entries = read_journal(path)
    if not entries:
        raise JournalError(f"{path} holds no records")
    return records.stacked(entries)
