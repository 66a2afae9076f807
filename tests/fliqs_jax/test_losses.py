import jax.numpy as jnp
import numpy as np
import pytest

from fliqs_jax import losses

LOGITS = np.asarray([[2.0, 0.0, -1.0], [0.0, 1.0, 3.0]])
LOG_P = LOGITS - np.log(np.exp(LOGITS).sum(axis=1, keepdims=True))


def test_cross_entropy_is_the_textbook_one():
    labels = np.asarray([0, 1])
    targets = np.eye(3)[labels] * 0.9 + 0.1 / 3
    found = losses.cross_entropy(0.1)(jnp.asarray(LOGITS), {"label": jnp.asarray(labels)})
    np.testing.assert_allclose(found, -(targets * LOG_P).sum(axis=1).mean(), rtol=1e-6)
    several = losses.cross_entropy(0.1)(jnp.asarray(LOGITS)[None], {"label": jnp.asarray(labels)[None]})
    np.testing.assert_allclose(several, found, rtol=1e-6)


def test_mixed_images_have_mixed_labels():
    batch = {"label": jnp.asarray([0, 1]), "mixed_label": jnp.asarray([1, 0]), "label_share": jnp.asarray([0.7, 0.7])}
    targets = 0.9 * np.asarray([[0.7, 0.3, 0], [0.3, 0.7, 0]]) + 0.1 / 3
    found = losses.cross_entropy(0.1)(jnp.asarray(LOGITS), batch)
    np.testing.assert_allclose(found, -(targets * LOG_P).sum(axis=1).mean(), rtol=1e-6)


def test_binary_cross_entropy_is_the_textbook_one():
    logits = np.asarray([1.5, -0.3, 0.2])
    p = 1 / (1 + np.exp(-logits))
    for smoothing in (0.0, 0.2):
        y = np.asarray([1, 0, 1]) * (1 - smoothing) + smoothing / 2
        expected = -(y * np.log(p) + (1 - y) * np.log(1 - p)).mean()
        found = losses.binary_cross_entropy(smoothing)(jnp.asarray(logits[:, None]), {"label": jnp.asarray([1, 0, 1])})
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_padding_is_left_out_of_the_mean():
    logits, label = jnp.asarray(LOGITS), jnp.asarray([1, 2])
    padded, longer = jnp.asarray([1, 2, -1]), jnp.concatenate([logits, 9 * jnp.ones((1, 3))])
    for loss, part in ((losses.cross_entropy(0.1), slice(None)), (losses.binary_cross_entropy(0.1), slice(1))):
        expected = loss(logits[:, part], {"label": label})
        np.testing.assert_allclose(loss(longer[:, part], {"label": padded}), expected, rtol=1e-6)
        assert loss(logits[:, part], {"label": jnp.asarray([-1, -1])}) == 0


def test_mixed_images_have_mixed_labels_in_binary_problems():
    """As one label of 0.7: the loss is linear in it."""
    logits = jnp.asarray([[1.5], [-0.3]])
    mixed = {"label": jnp.asarray([1, 0]), "mixed_label": jnp.asarray([0, 1]), "label_share": jnp.asarray([0.7, 0.7])}
    loss = losses.binary_cross_entropy(0.0)
    expected = 0.7 * loss(logits, {"label": mixed["label"]}) + 0.3 * loss(logits, {"label": mixed["mixed_label"]})
    np.testing.assert_allclose(loss(logits, mixed), expected, rtol=1e-6)


CROSS, BINARY = losses.cross_entropy(0.1), losses.binary_cross_entropy(0.1)


@pytest.mark.parametrize(
    ("loss", "logits", "label", "message"),
    [
        (CROSS, (4, 3), np.zeros((4, 1), int), r"labels of shape \(4, 1\) .*: expected integers of shape \(4,\)"),
        (CROSS, (4, 3), np.zeros((4, 3)), r"labels of shape \(4, 3\) and type float32"),
        (CROSS, (4, 3), np.zeros(1, int), r"labels of shape \(1,\)"),
        (CROSS, (4, 3), np.zeros(4), "type float32 for logits"),
        (CROSS, (4, 1), np.zeros(4, int), "a logit for each of two classes or more, got one logit"),
        (CROSS, (4,), np.zeros(4, int), r"logits of shape \(4,\)"),
        (BINARY, (4, 2), np.zeros(4, int), "binary cross-entropy needs one logit, got 2"),
        (BINARY, (4, 1), np.zeros((4, 1), int), r"labels of shape \(4, 1\)"),
        (BINARY, (4,), np.zeros((), int), r"logits of shape \(4,\)"),
    ],
)
def test_shapes_that_would_broadcast_are_refused(loss, logits, label, message):
    with pytest.raises(ValueError, match=message):
        loss(jnp.zeros(logits), {"label": jnp.asarray(label)})


@pytest.mark.parametrize(("mixed", "share"), [((4,), (4, 1)), ((4,), ()), ((1,), (4,))])
def test_mixed_labels_that_would_broadcast_are_refused(mixed, share):
    batch = {"label": jnp.zeros(4, int), "mixed_label": jnp.zeros(mixed, int), "label_share": jnp.zeros(share)}
    with pytest.raises(ValueError, match=r"mixed labels of shape .*: expected \(4,\) and \(4,\)"):
        CROSS(jnp.zeros((4, 3)), batch)
