"""Measures networks of the once-for-all network, in float and under quantisation: what predictors learn from (§4)."""

from collections.abc import Iterator

import jax
import numpy as np
from rich.progress import track

from apq_jax import records
from hwcost import journal as journal_lib
from hwcost.journal import Journal, JournalError
from launch.apq import measurement, ray_workers, supernet
from launch.apq.pipeline import RECORD_FILES, SUMMARY, SUPERNET, Pipeline
from launch.experiment import ConfigError


def measured(task: measurement.Measurement, genomes: np.ndarray, workers: str) -> Iterator[float]:
    """Accuracies of genomes, int32[N, D], in order; they are the same whichever workers there are.

    Args:
      task: how to measure.
      genomes: to be measured.
      workers: `process` for one after the other, `ray` for those of a Ray cluster, `ray:N` for N of them.

    Raises:
      ConfigError: unknown workers, or Ray is not installed.
    """
    kind, _, count = workers.partition(":")
    if workers == "process":
        return map(measurement.measure_of(task), genomes)
    if kind == "ray" and (count.isdigit() or workers == "ray"):
        return ray_workers.mapped(measurement.measure_of, task, list(genomes), workers=int(count or 0))
    raise ConfigError(f"--workers={workers}: expected process, ray or ray:N")


def collect(pipeline: Pipeline, workers: str = "process") -> None:
    """Measures as many networks as the config says, of each kind; those that are there are not measured again.

    Args:
      pipeline: the experiment.
      workers: as `measured` takes them.

    Raises:
      ConfigError: unknown workers, or Ray is not installed.
      JournalError: a file of records is damaged or of something else.
    """
    config, space = pipeline.config.records, pipeline.space
    supernet_digest = pipeline.read(f"{SUPERNET}/{SUMMARY}")["state_sha256"]
    keys = jax.random.split(jax.random.key(pipeline.config.seed + 1))
    wanted = {
        "float": records.float_genomes(space, config.float, keys[0]),
        "quantized": records.quantized_genomes(space, config.quantized, keys[1], policies=config.policies),
    }
    state, found = None, None
    for kind, genomes in wanted.items():
        # How many there are to be is no part of what they are: more may be asked for later.
        settings = {key: value for key, value in config.to_dict().items() if key not in RECORD_FILES}
        head = {"kind": kind, "supernet_sha256": supernet_digest, "settings": settings}
        with Journal(pipeline.workdir / RECORD_FILES[kind], head, option="--workdir") as journal:
            left = genomes[len(journal.entries) :]
            if not len(left):
                pipeline.note(f"already complete: {len(journal.entries)} {kind} records")
                continue
            if state is None or found is None:
                state, found = supernet.read(pipeline), measurement.batches(pipeline, pipeline.open_data())
            reached = measured(measurement.of_kind(kind, pipeline, state, found), left, workers)
            for genome, value in track(
                zip(left, reached, strict=True), f"{kind} records", total=len(left), console=pipeline.console
            ):
                journal.append(records.entry(genome, value))


def read(pipeline: Pipeline, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Genomes int32[N, D] and accuracies float32[N].

    Raises:
      JournalError: none are there, or a line is damaged.
    """
    path = pipeline.workdir / RECORD_FILES[kind]
    _, entries = journal_lib.read(path)
    if not entries:
        raise JournalError(f"{path} holds no records")
    return records.stacked(entries)
