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


def test_one_logit_predicts_by_its_sign():
    logits = jnp.asarray([0.3, -2.0, -0.1, 4.0, 1.0])[:, None]
    assert accuracy.on_batch(logits, {"label": jnp.asarray([1, 0, 1, 1, -1])}) == 3 / 4


@pytest.mark.parametrize("shift", [0.0, -14.0, 14.0, 300.0])  # probabilities of about 1e-6 and 1 − 1e-6, and beyond
@pytest.mark.parametrize("scale", [1e-3, 0.5, 3.0])
def test_auc_is_scikit_learns(shift, scale):
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 5000)
    scores = (shift + scale * (rng.standard_normal(5000) + 0.7 * label)).astype(np.float32)
    batch, expected = {"label": jnp.asarray(label)}, roc_auc_score(label, scores)
    np.testing.assert_allclose(auc.on_batch(jnp.asarray(scores[:, None]), batch), expected, atol=1e-6)
    if shift == 0:  # of two logits, label 1 has the second
        two = jnp.stack([jnp.asarray(-scores / 2), jnp.asarray(scores / 2)], axis=1)
        np.testing.assert_allclose(auc.on_batch(two, batch), expected, atol=1e-6)


def test_auc_is_the_share_of_ordered_pairs_whatever_the_ties():
    rng = np.random.default_rng(3)
    label, scores = rng.integers(-1, 2, 300), rng.integers(-4, 5, 300).astype(np.float32)
    negative, positive = scores[label == 0][:, None], scores[label == 1]
    expected = ((negative < positive) + (negative == positive) / 2).mean()
    found = auc.on_batch(jnp.asarray(scores[:, None]), {"label": jnp.asarray(label)})
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert np.isnan(auc.on_batch(jnp.asarray([[jnp.nan], [0.0]]), {"label": jnp.asarray([0, 1])}))


def test_auc_of_more_pairs_than_an_int32_can_count():
    label = jnp.arange(100_000) % 2
    assert auc.on_batch(label[:, None].astype(jnp.float32), {"label": label}) == 1


@pytest.mark.parametrize("quality", QUALITIES.values(), ids=QUALITIES)
@pytest.mark.parametrize(
    "label", [np.zeros((4, 1), int), np.zeros((4, 2), int), np.zeros(3, int), np.zeros(4), np.zeros((), int)]
)
def test_labels_that_would_broadcast_are_refused(quality, label):
    with pytest.raises(ValueError, match=r"labels of shape .* expected integers of shape \(4,\)"):
        quality.on_batch(jnp.zeros((4, 2)), {"label": jnp.asarray(label)})


def test_logits_that_a_quality_cannot_have_are_refused():
    with pytest.raises(ValueError, match="the AUC is of one logit or two, got 3"):
        auc.on_batch(jnp.zeros((4, 3)), {"label": jnp.zeros(4, int)})
    with pytest.raises(ValueError, match=r"logits of shape \(4,\): expected \[batch, …, logits\]"):
        auc.on_batch(jnp.zeros(4), {"label": jnp.zeros((), int)})


def test_auc_counts_ties_half_and_ignores_padding():
    logits = jnp.asarray([0.0, 0.0, 1.0, -1.0, 9.0])[:, None]
    batch = {"label": jnp.asarray([0, 1, 1, 0, -1])}
    # Pairs (negative, positive): (0, 0) ties, (0, 1), (-1, 0), (-1, 1) are in order.
    assert auc.on_batch(logits, batch) == 3.5 / 4
    assert auc.on_batch(logits, {"label": jnp.ones(5, jnp.int32)}) == 0.5
    extreme = jnp.asarray([-1e9, 1e9, jnp.inf, -jnp.inf, 0.0])[:, None]
    assert auc.on_batch(extreme, {"label": jnp.asarray([0, 1, 1, 0, -1])}) == 1


@pytest.mark.parametrize("name", QUALITIES)
def test_statistics_are_joined_over_batches(name):
    found = QUALITIES[name]
    rng = np.random.default_rng(1)
    logits, label = rng.standard_normal((4, 30, 2)).astype(np.float32), rng.integers(0, 2, (4, 30)).astype(np.int32)
    statistics = jax.jit(found.statistics)
    parts = [statistics(x, {"label": y}) for x, y in zip(logits, label, strict=True)]
    total = found.joined(parts)
    whole = found.on_batch(logits.reshape(120, 2), {"label": label.reshape(120)})
    np.testing.assert_allclose(found.value(total), whole, rtol=1e-6)
    mapped = jax.vmap(found.on_batch)(jnp.asarray(logits), {"label": jnp.asarray(label)})
    np.testing.assert_allclose(mapped, [found.value(part) for part in parts], rtol=1e-6)
