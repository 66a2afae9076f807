import jax
import numpy as np
import optax
import pytest

from fliqs_jax.weight_averaging import averaged, served_weights


@pytest.mark.parametrize("decay", [0.5, 0.9999])
def test_the_average_is_that_of_numpy(decay):
    optimizer, plain = averaged(optax.adam(0.1), decay), optax.adam(0.1)
    weights = own = {"w": np.asarray([1.0, -2.0], np.float32)}
    state, inner, expected = optimizer.init(weights), plain.init(own), None
    update = jax.jit(optimizer.update)
    for step in range(12):
        gradient = {"w": np.asarray([np.sin(step), 1.0], np.float32)}
        updates, state = update(gradient, state, weights)
        weights = optax.apply_updates(weights, updates)
        changes, inner = plain.update(gradient, inner, own)
        own = optax.apply_updates(own, changes)
        kept = min(decay, (1 + step) / (10 + step)) if step else 0.0
        expected = own["w"] if expected is None else kept * expected + (1 - kept) * own["w"]
    np.testing.assert_allclose(weights["w"], own["w"], rtol=1e-6)
    np.testing.assert_allclose(served_weights(weights, state)["w"], expected, rtol=1e-5)
    assert served_weights(own, inner) is own
