import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from launch.training import optimizers

STEPS = 40


def settings(**changes):
    config = common.get_config().optimizer
    config.update(changes)
    return config


def trained(config, gradient=1.0):
    """A kernel and a bias under a constant gradient, after each of 40 steps."""
    optimizer = optimizers.weight_optimizer(config, STEPS)
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    state, course = optimizer.init(params), []
    update = jax.jit(optimizer.update)
    for _ in range(STEPS):
        updates, state = update(jax.tree.map(lambda p: jnp.full_like(p, gradient), params), state, params)
        params = jax.tree.map(jnp.add, params, updates)
        course.append((float(params["kernel"][0, 0]), float(params["bias"][0])))
    return np.asarray(course)


def rates(schedule, **changes):
    config = settings(schedule=schedule, momentum=0.0, weight_decay=0.0, learning_rate=1.0, **changes)
    return -np.diff(np.concatenate([[1.0], trained(config)[:, 1]]))


def test_schedules_rise_linearly_and_fall_as_they_are_called():
    steps = np.arange(30) / 30
    found = rates("cosine", warmup_fraction=0.25)
    np.testing.assert_allclose(found[:10], np.arange(10) / 10, atol=1e-5)
    np.testing.assert_allclose(found[10:], (1 + np.cos(np.pi * steps)) / 2, atol=1e-5)
    found = rates("exponential", warmup_fraction=0.25, decay_to=0.01)
    np.testing.assert_allclose(found[10:], 0.01**steps, atol=1e-5)
    assert rates("exponential", warmup_fraction=0.0)[0] == pytest.approx(1)


def test_rmsprop_is_that_of_the_paper_that_uses_it():
    config = settings(name="rmsprop", warmup_fraction=0.0, weight_decay=0.0, learning_rate=0.1, schedule="exponential")
    mean_square, velocity, x, expected = 0.0, 0.0, 1.0, []
    for step in range(STEPS):
        mean_square = 0.9 * mean_square + 0.1 * 4.0
        # As in TensorFlow, where those recipes come from, the learning rate enters the velocity.
        velocity = 0.9 * velocity + 0.1 * 0.01 ** (step / STEPS) * 2.0 / np.sqrt(mean_square + 1e-3)
        x -= velocity
        expected.append(x)
    np.testing.assert_allclose(trained(config, gradient=2.0)[:, 1], expected, rtol=1e-4)


def test_frozen_weights_stay():
    assert (trained(settings(name="frozen")) == 1).all()


@pytest.mark.parametrize("name", [name for name in optimizers.OPTIMIZERS if name != "frozen"])
def test_weight_decay_is_for_kernels(name):
    course = trained(settings(name=name, weight_decay=0.1, learning_rate=0.01), gradient=0.0)
    assert course[-1, 0] < 1
    assert course[-1, 1] == 1


@pytest.mark.parametrize("name", ["optax:lion", "tests.called_networks:optimizer"])
def test_an_optimizer_of_ones_own(name):
    config = common.get_config().optimizer
    config.name, config.weight_decay = name, 0.0
    optimizer = optimizers.weight_optimizer(config, STEPS)
    params = {"kernel": jnp.ones((2, 2))}
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    assert jnp.all(updates["kernel"] == 0)  # the rate that the schedule begins with
    assert optimizers.unused_settings(config) == ("momentum",)


@pytest.mark.parametrize("name", ["optax.contrib:reduce_on_plateau", "tests.called_networks:CLASSES", "optax:l2_loss"])
def test_what_is_no_optimizer_is_refused(name):
    config = common.get_config().optimizer
    config.name = name
    with pytest.raises(ValueError, match=f"optimizer.name='{name}': expected a function of the learning rate"):
        optimizers.weight_optimizer(config, STEPS)


def test_an_optimizer_of_ones_own_may_know_weights_by_name():
    config = common.get_config().optimizer
    config.name = "tests.called_networks:head_optimizer"
    weights = {name: {"kernel": jax.ShapeDtypeStruct((2, 2), jnp.float32)} for name in ("embed", "up", "norm", "head")}
    assert optimizers.weight_optimizer(config, STEPS, weights)
    with pytest.raises(ValueError, match="updates by gradients and weights alone: "):
        optimizers.weight_optimizer(config, STEPS, {"head": weights["head"]})
