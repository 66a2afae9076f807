"""The one training loop. It does the input and output around a compiled step, and nothing else."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from launch.training.checkpoints import Checkpoints
from launch.training.interruption import StopRequested
from launch.training.progress import Recorder

_ADVICE = (
    "The last good checkpoint is kept. Try a lower --config.optimizer.learning_rate or a longer "
    "--config.optimizer.warmup_fraction, in a new workdir"
)


class NotFiniteError(RuntimeError):
    """The loss or a weight became NaN or infinite."""


class Stopped(SystemExit):
    """The run was asked to stop, and did so after a checkpoint."""


class Saving(NamedTuple):
    """What is kept of a run while it goes on, and how often.

    Attributes:
      recorder: is given the metrics.
      log_every: steps between records.
      policy_probabilities: of a state, float[D, Kmax], for the record.
      checkpoints: where states go.
      checkpoint_every: steps between checkpoints.
    """

    recorder: Recorder
    log_every: int
    policy_probabilities: Callable[[Any], np.ndarray]
    checkpoints: Checkpoints
    checkpoint_every: int


def run(
    state: Any,
    *,
    step: Callable[..., tuple[Any, Mapping[str, jax.Array]]],
    batches: Iterator[tuple[Any, ...]],
    first_step: int,
    total_steps: int,
    before_step: Mapping[int, Callable[[Any], Any]],
    saving: Saving,
    stop: StopRequested,
) -> Any:
    """Trains from `first_step` to `total_steps`, recording and checkpointing on the way.

    Args:
      state: what `step` maps to its successor; its `params` are the weights.
      step: `(state, *batch) -> (state, metrics)`; metrics have a scalar `"loss"`.
      batches: those of `first_step` and after.
      first_step: steps done already.
      total_steps: where to stop.
      before_step: `state -> state` changes to make before the step of that number, once.
      saving: what is kept, and how often.
      stop: a request to stop is heeded after each step.

    Returns:
      The last state.

    Raises:
      NotFiniteError: the loss or a weight is no finite number; no checkpoint is written from there on.
      Stopped: on request, after a checkpoint.
    """
    pending: list[Mapping[str, jax.Array]] = []

    def flush(done: int) -> None:
        """Fetches, checks and records pending metrics."""
        rows = jax.device_get(pending)
        pending.clear()
        for number, row in enumerate(rows, start=done - len(rows) + 1):
            if not np.isfinite(row["loss"]):
                raise NotFiniteError(f"the loss is {row['loss']} at step {number}. {_ADVICE}")
        if rows:
            saving.recorder.record(rows, saving.policy_probabilities(state))

    for number in range(first_step, total_steps):
        if number in before_step:
            state = before_step[number](state)
        state, metrics = step(state, *next(batches))
        pending.append(metrics)
        done = number + 1
        stopping = bool(stop)
        checkpoint_due = stopping or done % saving.checkpoint_every == 0 or done == total_steps
        if checkpoint_due or done % saving.log_every == 0:
            flush(done)
        if checkpoint_due:
            # The loss was computed before the latest update, so it does not vouch for what would be saved.
            if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(state.params))):
                raise NotFiniteError(f"a weight is no finite number after step {done}. {_ADVICE}")
            saving.checkpoints.save(done, state)
            saving.recorder.pause_clock()
        if stopping and done < total_steps:
            raise Stopped(128 + (stop.signal_number or 0))
    return state
