import jax.numpy as jnp
import numpy as np

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
