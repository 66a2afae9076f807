"""Training loop of all runs: input and output around a compiled step."""

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
    """The run stopped on request, after a checkpoint."""


class Saving(NamedTuple):
    """Where and how often metrics and states are stored during training.

    Attributes:
      recorder: receives the metrics.
      log_every: steps between records.
      policy_probabilities: `(state) → float[D, Kmax]`, for the records.
      checkpoints: receives the states.
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
    """Trains from `first_step` to `total_steps`, and writes metrics and checkpoints.

    Args:
      state: state after `first_step` steps, consumed; its `params` are the weights.
      step: `(state, *batch) -> (state, metrics)`; metrics contain a scalar `"loss"`.
      batches: arguments of `step` from step `first_step` on.
      first_step: number of steps completed before.
      total_steps: number of steps at the end.
      before_step: functions `state -> state` by the number of the step that they run before.
      saving: where and how often metrics and states are stored.
      stop: request to stop, checked after each step.

    Returns:
      State after `total_steps` steps.

    Raises:
      NotFiniteError: the loss or a weight is not finite; such a state is not checkpointed.
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
            # The loss was computed before the latest update, so a finite loss does not imply finite weights.
            if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(state.params))):
                raise NotFiniteError(f"a weight is no finite number after step {done}. {_ADVICE}")
            saving.checkpoints.save(done, state)
            saving.recorder.pause_clock()
        if stopping and done < total_steps:
            raise Stopped(128 + (stop.signal_number or 0))
    return state
