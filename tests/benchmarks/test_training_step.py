import jax
import jax.numpy as jnp
import numpy as np

from aqt_like import gradients
from aqt_like.formats import format_table, parse_format
from benchmarks import training_step


def test_the_compared_estimator_is_the_same():
    x = jax.random.normal(jax.random.key(0), (1000,))
    row = format_table([parse_format("int4")], [1.0]).row(0)
    clip = jnp.float32(1.5)

    @jax.jit
    def values_and_gradients(x):
        estimators = gradients.straight_through, training_step.straight_through_by_custom_vjp
        losses = (lambda x, e=estimator: jnp.sum(e(x, row, clip) ** 2) for estimator in estimators)
        return [e.codes(x, row, clip) for e in estimators], [jax.grad(loss)(x) for loss in losses]

    for ours, theirs in values_and_gradients(x):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), ours, theirs)
