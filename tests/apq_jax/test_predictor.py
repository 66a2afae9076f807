import jax
import jax.numpy as jnp
import numpy as np
import pytest

from apq_jax import predictor


def task(count, features=12, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 2, (count, features)).astype(np.float32)
    return x, (0.7 + 0.02 * x @ np.arange(features) / features + 0.01 * x[:, 0] * x[:, 1]).astype(np.float32)


def test_a_transferred_predictor_starts_as_the_same_function():
    x, y = task(64)
    found = predictor.init(8, y, jax.random.key(0), hidden=16)
    wider = predictor.transferred(found, 12)
    np.testing.assert_array_equal(predictor.predict(wider, x), predictor.predict(found, x[:, :8]))
    assert wider.layers[0].kernel.shape == (12, 16)
    with pytest.raises(ValueError, match="4 features: the predictor has 8 already"):
        predictor.transferred(found, 4)


def test_fitting_learns_and_compiles_once():
    x, y = task(400)
    held_x, held_y = task(100, seed=1)
    start = predictor.init(12, y, jax.random.key(0), hidden=32)
    assert [layer.kernel.shape for layer in start.layers] == [(12, 32), (32, 32), (32, 32), (32, 1)]
    before = predictor.agreement(predictor.predict(start, held_x), held_y)
    compiled = predictor.fit._cache_size()
    for seed in range(2):
        found = predictor.fit(start, x, y, jax.random.key(seed), steps=400, learning_rate=3e-3)
    assert predictor.fit._cache_size() == compiled + 1
    after = predictor.agreement(predictor.predict(found, held_x), held_y)
    assert after.pairwise > 0.93 > before.pairwise
    assert after.error < 0.3 * before.error


def test_one_compilation_serves_all_numbers_of_records_with_the_results_of_these_alone():
    x, y = task(48)

    @jax.jit
    def fitted(count):
        start = predictor.init(12, y, jax.random.key(0), hidden=16, count=count)
        return predictor.fit(start, x, y, jax.random.key(1), count=count, steps=50, batch_size=32)

    for count in (10, 40):
        start = predictor.init(12, y[:count], jax.random.key(0), hidden=16)
        alone = predictor.fit(start, x[:count], y[:count], jax.random.key(1), steps=50, batch_size=32)
        for ours, theirs in zip(jax.tree.leaves(fitted(count)), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    assert fitted._cache_size() == 1


def test_transfer_helps_where_records_are_few():
    x, y = task(400)
    float_predictor = predictor.fit(
        predictor.init(10, y, jax.random.key(0), hidden=32), x[:, :10], y, jax.random.key(1), steps=400
    )
    few_x, few_y = task(10, seed=2)
    held_x, held_y = task(100, seed=1)
    scores = []
    for start in (predictor.transferred(float_predictor, 12), predictor.init(12, few_y, jax.random.key(3), hidden=32)):
        found = predictor.fit(start, few_x, few_y, jax.random.key(4), steps=200)
        scores.append(predictor.agreement(predictor.predict(found, held_x), held_y).pairwise)
    assert scores[0] > scores[1] + 0.05


def test_weights_decay_towards_the_anchor():
    x, y = task(64)
    start = predictor.init(12, y, jax.random.key(0), hidden=16)
    pulled = {
        anchor is None: predictor.fit(start, x, y, jax.random.key(1), anchor=anchor, steps=200, weight_decay=100.0)
        for anchor in (None, start)
    }
    for start_layer, to_zero, to_start in zip(start.layers, pulled[True].layers, pulled[False].layers, strict=True):
        size = jnp.abs(start_layer.kernel).mean()
        assert jnp.abs(to_zero.kernel).mean() < 0.1 * size
        assert jnp.abs(to_start.kernel - start_layer.kernel).mean() < 0.1 * size


def test_agreement_is_what_counting_pairs_gives():
    rng = np.random.default_rng(0)
    predicted, true = rng.normal(size=30), np.round(rng.normal(size=30), 1)
    right = total = 0
    for i in range(30):
        for j in range(i):
            if true[i] != true[j]:
                total += 1
                right += (predicted[i] > predicted[j]) == (true[i] > true[j])
    found = predictor.agreement(jnp.asarray(predicted), true)
    assert found.pairwise == pytest.approx(right / total)
    assert found.error == pytest.approx(np.sqrt(np.mean((predicted - true) ** 2)), rel=1e-5)
    assert predictor.agreement(true, true).kendall == pytest.approx(1.0)
