import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fliqs_jax import distillation, losses


def softmax(x):
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def test_the_loss_is_hintons():
    logits, teacher = (np.asarray(jax.random.normal(jax.random.key(i), (6, 4)), np.float64) for i in range(2))
    batch = {"label": jnp.asarray([0, 1, 2, 3, 0, 1]), "teacher_logits": jnp.asarray(teacher, jnp.float32)}
    plain = losses.cross_entropy(0.1)
    found = distillation.distilled(plain, weight=0.3, temperature=2.5)(jnp.asarray(logits, jnp.float32), batch)
    p, q = softmax(teacher / 2.5), softmax(logits / 2.5)
    divergence = (p * np.log(p / q)).sum(1).mean()
    hard = plain(jnp.asarray(logits, jnp.float32), batch)
    np.testing.assert_allclose(found, 0.7 * hard + 0.3 * 2.5**2 * divergence, rtol=1e-5)


def test_a_network_that_equals_its_teacher_has_only_the_hard_loss():
    logits = jax.random.normal(jax.random.key(0), (6, 4))
    batch = {"label": jnp.zeros(6, jnp.int32), "teacher_logits": logits}
    loss = distillation.distilled(lambda logits, batch: jnp.float32(0), weight=0.5, temperature=3.0)
    assert abs(loss(logits, batch)) < 1e-6
    assert all(abs(jax.grad(loss)(logits, batch)).ravel() < 1e-6)


@pytest.mark.parametrize("settings", [{"weight": 1.1, "temperature": 1.0}, {"weight": 0.5, "temperature": 0.0}])
def test_settings_out_of_range(settings):
    with pytest.raises(ValueError, match="expected 0…1 and a number above 0"):
        distillation.distilled(losses.cross_entropy(0.1), **settings)


def test_logits_of_another_shape_are_refused():
    loss = distillation.distilled(losses.cross_entropy(0.0), weight=0.5, temperature=1.0)
    batch = {"label": jnp.zeros(4, int), "teacher_logits": jnp.zeros((4, 1))}
    with pytest.raises(ValueError, match=r"teacher's logits have shape \(4, 1\), the student's \(4, 3\)"):
        loss(jnp.zeros((4, 3)), batch)
