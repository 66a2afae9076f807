import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fliqs_jax.reward import REWARDS
from fliqs_jax.schedule import ENTROPY_SCHEDULES, cosine


@pytest.mark.parametrize(
    ("name", "quality", "relative_cost", "expected"),
    [
        ("absolute", 0.7, 1.2, 0.7 - 0.5 * 0.2),
        ("absolute", 0.7, 0.8, 0.7 - 0.5 * 0.2),
        ("one_sided", 0.7, 1.2, 0.7 - 0.5 * 0.2),
        ("one_sided", 0.7, 0.8, 0.7),
        ("soft_exponential", 0.7, 4.0, 0.35),
        ("soft_exponential", 0.7, 0.25, 1.4),
        ("hard_exponential", 0.7, 4.0, 0.35),
        ("hard_exponential", 0.7, 0.25, 0.7),
    ],
)
def test_golden_rewards(name, quality, relative_cost, expected):
    value = jax.jit(REWARDS[name])(jnp.asarray(quality), jnp.asarray(relative_cost), 0.5)
    np.testing.assert_allclose(value, expected, rtol=1e-6)


@pytest.mark.parametrize("name", REWARDS)
def test_every_reward_prefers_quality_and_dislikes_excess(name):
    function = REWARDS[name]
    assert function(jnp.asarray(0.8), jnp.asarray(1.1), 0.3) > function(jnp.asarray(0.7), jnp.asarray(1.1), 0.3)
    assert function(jnp.asarray(0.7), jnp.asarray(1.1), 0.3) > function(jnp.asarray(0.7), jnp.asarray(1.5), 0.3)
    assert function(jnp.asarray(0.7), jnp.asarray(1.0), 0.3) == pytest.approx(0.7)


def test_entropy_schedules():
    s = jnp.asarray([0.0, 0.5, 1.0])
    expected = {"cosine": [0, 0.25, 0.5], "linear": [0, 0.25, 0.5], "constant": [0.5] * 3, "none": [0] * 3}
    assert expected.keys() == ENTROPY_SCHEDULES.keys()
    for name, function in ENTROPY_SCHEDULES.items():
        np.testing.assert_allclose(jax.vmap(lambda x, f=function: f(x, 0.5))(s), expected[name], atol=1e-7)
    # Equation 9 as printed: −β/2 · (1 + cos πs) + β.
    quarter = -0.5 * 0.5 * (1 + np.cos(np.pi / 4)) + 0.5
    np.testing.assert_allclose(cosine(jnp.asarray(0.25), 0.5), quarter, rtol=1e-6)
