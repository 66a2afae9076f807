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


def run(tmp_path, step, *, checkpoint_every, metrics=None, probability=1.0):
    tmp_path.mkdir(exist_ok=True)
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
            step=lambda state, number: (step(state, number), metrics(number) if metrics else scalars),
            batches=zip(itertools.count(), strict=True),
            first_step=0,
            total_steps=6,
            before_step={},
            saving=loop.Saving(
                recorder=recorder,
                log_every=1,
                policy_probabilities=lambda state: np.full((1, 1), probability),
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


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("loss", r"the loss is nan at step 3\. .* Try a lower --config\.optimizer\.learning_rate"),
        ("reward", r"the reward is nan at step 3\. .* Try a lower --config\.controller\.reinforce\.gamma"),
        ("entropy", r"the entropy is nan at step 3\. .* --config\.controller\.reinforce\.learning_rate or entropy_end"),
        ("relative_cost", r"the relative cost is nan at step 3\. .* Try another --config\.cost"),
        ("valid_quality", r"the valid quality is nan at step 3\. .* Try another --config\.quality"),
        ("of_my_own", r"the of my own is nan at step 3\. .* look at your own controller"),
    ],
)
def test_what_is_not_finite_stops_the_run_with_the_step_and_the_likely_key(tmp_path, name, told):
    def metrics(number):
        return {**dict.fromkeys((*progress.SHOWN, "of_my_own"), jnp.zeros(())), name: jnp.log(2.0 - number)}

    with pytest.raises(loop.NotFiniteError, match=told.replace("nan", "(nan|-inf)")):
        run(tmp_path, lambda state, number: state, checkpoint_every=2, metrics=metrics)
    assert Checkpoints(tmp_path / "checkpoints").restore(State(jnp.ones(3)))[0] == 2


def test_the_policy_and_the_state_of_the_controller_are_watched(tmp_path):
    class Searching(NamedTuple):
        params: jax.Array
        controller: tuple

    for ruined in (jnp.nan, jnp.inf):
        with pytest.raises(loop.NotFiniteError, match=r"the controller's state is not finite after step 2\. "):
            run(
                tmp_path / str(ruined),
                lambda state, number, ruined=ruined: Searching(state.params, (jnp.full(2, ruined), jnp.int32(1))),
                checkpoint_every=2,
            )
    run(tmp_path / "fine", lambda state, number: Searching(state.params, (jnp.full(2, -jnp.inf),)), checkpoint_every=2)
    with pytest.raises(loop.NotFiniteError, match=r"the policy is no probability after step 1\. "):
        run(tmp_path / "nan", lambda state, number: state, checkpoint_every=2, probability=np.nan)


@pytest.mark.parametrize("quality", [45.5, -0.25])
def test_a_quality_that_is_no_share_ends_the_run(quality, tmp_path):
    scalars = dict.fromkeys(progress.SHOWN, jnp.zeros(())) | {"train_quality": jnp.float32(quality)}
    with pytest.raises(loop.NotFiniteError, match=rf"the train quality is {quality}.* at step 1: expected 0 … 1"):
        run(tmp_path, lambda state, _: state, checkpoint_every=2, metrics=lambda _: scalars)
