import io
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from launch.training import loop, progress
from launch.training.checkpoints import Checkpoints
from launch.training.interruption import StopRequested


class State(NamedTuple):
    params: jax.Array


def run(tmp_path, step, *, checkpoint_every):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    scalars = dict.fromkeys(progress.SHOWN, jnp.zeros(()))
    with progress.Recorder(
        tmp_path / "metrics.jsonl",
        title="run",
        quality="accuracy",
        first_step=0,
        total_steps=6,
        console=Console(file=io.StringIO()),
    ) as recorder:
        loop.run(
            State(jnp.ones(3)),
            step=lambda state, number: (step(state, number), scalars),
            batches=zip(itertools.count(), strict=True),
            first_step=0,
            total_steps=6,
            before_step={},
            saving=loop.Saving(
                recorder=recorder,
                log_every=1,
                policy_probabilities=lambda state: np.ones((1, 1)),
                checkpoints=checkpoints,
                checkpoint_every=checkpoint_every,
            ),
            stop=StopRequested(),
        )
    return checkpoints


def test_weights_that_the_latest_update_ruined_are_not_saved(tmp_path):
    """Its loss, computed before the update, is finite."""
    ruin = [1.0, 1.0, 1.0, jnp.inf, 1.0, 1.0]
    with pytest.raises(loop.NotFiniteError, match=r"no finite number after step 4\. The last good checkpoint is kept"):
        run(tmp_path, lambda state, number: State(state.params * ruin[number]), checkpoint_every=2)
    step, state = Checkpoints(tmp_path / "checkpoints").restore(State(jnp.ones(3)))
    assert step == 2
    np.testing.assert_array_equal(state.params, np.ones(3))


def test_the_last_state_is_saved_whatever_the_interval(tmp_path):
    checkpoints = run(tmp_path, lambda state, number: State(state.params + 1), checkpoint_every=4)
    step, state = checkpoints.restore(State(jnp.ones(3)))
    assert step == 6
    np.testing.assert_array_equal(state.params, np.full(3, 7.0))
