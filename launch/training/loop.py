"""Training loop of all runs: input and output around a compiled step."""

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from launch.training.checkpoints import Checkpoints
from launch.training.interruption import StopRequested
from launch.training.progress import Recorder

_WEIGHTS = "a lower --config.{0}optimizer.learning_rate or a longer --config.{0}optimizer.warmup_fraction"
_CONTROLLER = "a lower --config.controller.reinforce.learning_rate or entropy_end, or look at your own controller"
_LIKELY = {  # what to try if a metric is not finite; the first of these that is not is told
    "loss": _WEIGHTS,
    "train_quality": "another --config.quality, or look at your own",
    "valid_quality": "another --config.quality, or look at your own",
    "cost": "another --config.cost, or look at its table",
    "relative_cost": "another --config.cost or --config.target",
    "entropy": _CONTROLLER,
    "expected_cost": _CONTROLLER,
    "reward": "a lower --config.controller.reinforce.gamma, or another reward or cost",
}


_QUALITIES, _ROUNDING = ("train_quality", "valid_quality"), 1e-5


class NotFiniteError(RuntimeError):
    """The loss, a weight, or what the controller computes became NaN or infinite; or a quality is not in 0 … 1."""


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
    section: str = "",
) -> Any:
    """Trains from `first_step` to `total_steps`, and writes metrics and checkpoints.

    Args:
      state: state after `first_step` steps, consumed; its `params` are the weights.
      step: `(state, *batch) -> (state, metrics)`; metrics contain a scalar `"loss"`, and others.
      batches: arguments of `step` from step `first_step` on.
      first_step: number of steps completed before.
      total_steps: number of steps at the end.
      before_step: functions `state -> state` by the number of the step that they run before.
      saving: where and how often metrics and states are stored.
      stop: request to stop, checked after each step.
      section: where in the config the settings of the optimiser are, as in `supernet.`.

    Returns:
      State after `total_steps` steps.

    Raises:
      NotFiniteError: a metric, a weight, or the state or policy of the controller is not finite; such a state is not
        checkpointed.
      Stopped: on request, after a checkpoint.
    """
    pending: list[Mapping[str, jax.Array]] = []

    def flush(done: int) -> None:
        """Fetches, checks and records pending metrics."""
        rows = jax.device_get(pending)
        pending.clear()
        for number, row in enumerate(rows, start=done - len(rows) + 1):
            for name in (*_LIKELY, *row):
                if name in row and not np.isfinite(row[name]).all():
                    told, advice = name.replace("_", " "), _LIKELY.get(name, _CONTROLLER)
                    raise NotFiniteError(_message(f"the {told} is {row[name]} at step {number}", advice, section))
                if name in _QUALITIES and name in row and not -_ROUNDING <= row[name] <= 1 + _ROUNDING:
                    told = f"the {name.replace('_', ' ')} is {row[name]} at step {number}: expected 0 … 1"
                    raise NotFiniteError(_message(told, _LIKELY[name], section))
        if rows:
            probabilities = saving.policy_probabilities(state)
            if not np.isfinite(probabilities).all():
                raise NotFiniteError(_message(f"the policy is no probability after step {done}", _CONTROLLER, section))
            saving.recorder.record(rows, probabilities)

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
            if not all(np.isfinite(leaf).all() for leaf in _numbers(state.params)):
                raise NotFiniteError(_message(f"a weight is no finite number after step {done}", _WEIGHTS, section))
            # Scores of what there is no option for may be −∞.
            controller = _numbers(getattr(state, "controller", ()))
            if any((np.isnan(leaf) | (leaf == np.inf)).any() for leaf in controller):
                raise NotFiniteError(
                    _message(f"the controller's state is not finite after step {done}", _CONTROLLER, section)
                )
            _save(saving.checkpoints, done, state)
            saving.recorder.pause_clock()
        if stopping and done < total_steps:
            raise Stopped(128 + (stop.signal_number or 0))
    return state


def _save(checkpoints: Checkpoints, done: int, state: Any) -> None:
    """Saves a checkpoint; a failure, as of a full disk, is told once, and not by each of orbax's threads.

    Raises:
      OSError: it cannot be written; those before are as they were.
    """
    verbosity, hook = logging.get_verbosity(), sys.unraisablehook
    logging.set_verbosity(logging.FATAL)
    sys.unraisablehook = lambda _: None
    try:
        checkpoints.save(done, state)
    except Exception as error:  # Of orbax, tensorstore or the system; the program ends with it.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise OSError(f"the checkpoint of step {done} cannot be written: {reason}") from error
    logging.set_verbosity(verbosity)
    sys.unraisablehook = hook


def _message(what: str, advice: str, section: str) -> str:
    return f"{what}. The last good checkpoint is kept. Try {advice.format(section)}, in a new workdir"


def _numbers(tree: Any) -> list[np.ndarray]:
    """The leaves of a tree that are floating-point numbers, on the host."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jax.dtypes.issubdtype(leaf.dtype, np.floating)]
    return jax.device_get(leaves)
