import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from fliqs_jax.quality import QUALITIES, accuracy, auc


def test_accuracy_is_the_share_of_labels_that_are_right():
    logits = jnp.asarray([[2.0, 0.0, -1.0], [0.0, 1.0, 3.0], [0.0, 5.0, 1.0]])
    batch = {"label": jnp.asarray([0, 1, -1])}  # the last is padding
    assert accuracy.on_batch(logits, batch) == 0.5
    assert accuracy.on_batch(logits, {"label": jnp.asarray([-1, -1, -1])}) == 0
    several = {"label": jnp.asarray([[0, 2], [1, -1]])}
    assert accuracy.on_batch(logits[jnp.asarray([[0, 1], [2, 2]])], several) == 1


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_auc_is_scikit_learns(scale):
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 5000)
    logits = scale * (rng.standard_normal(5000) + 0.7 * label).astype(np.float32)
    found = auc.on_batch(jnp.asarray(logits[:, None]), {"label": jnp.asarray(label)})
    np.testing.assert_allclose(found, roc_auc_score(label, logits), atol=2e-4)


def test_auc_counts_ties_half_and_ignores_padding():
    logits = jnp.asarray([0.0, 0.0, 1.0, -1.0, 9.0])[:, None]
    batch = {"label": jnp.asarray([0, 1, 1, 0, -1])}
    # Pairs (negative, positive): (0, 0) ties, (0, 1), (-1, 0), (-1, 1) are in order.
    assert auc.on_batch(logits, batch) == 3.5 / 4
    assert auc.on_batch(logits, {"label": jnp.ones(5, jnp.int32)}) == 0.5
    extreme = jnp.asarray([-1e9, 1e9, jnp.inf, -jnp.inf, 0.0])[:, None]
    assert auc.on_batch(extreme, {"label": jnp.asarray([0, 1, 1, 0, -1])}) == 1


@pytest.mark.parametrize("name", QUALITIES)
def test_statistics_add_up_over_batches(name):
    found = QUALITIES[name]
    rng = np.random.default_rng(1)
    logits, label = rng.standard_normal((4, 30, 3)).astype(np.float32), rng.integers(0, 2, (4, 30)).astype(np.int32)
    statistics = jax.jit(found.statistics)
    parts = [statistics(x, {"label": y}) for x, y in zip(logits, label, strict=True)]
    total = jax.tree.map(lambda *leaves: sum(leaves), *parts)
    whole = found.on_batch(logits.reshape(120, 3), {"label": label.reshape(120)})
    np.testing.assert_allclose(found.value(total), whole, rtol=1e-6)
    mapped = jax.vmap(found.on_batch)(jnp.asarray(logits), {"label": jnp.asarray(label)})
    np.testing.assert_allclose(mapped, [found.value(part) for part in parts], rtol=1e-6)
