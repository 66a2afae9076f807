"""Activations in bfloat16 against a derivation in NumPy that rounds what each layer gives."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from aqt_like.interception import Quantizer, apply_quantized

STORED = Quantizer(activations=jnp.bfloat16)


class Network(nn.Module):
    @nn.compact
    def __call__(self, words, *, train):
        x = nn.Embed(7, 6, name="embed")(words)
        y = nn.relu(nn.BatchNorm(use_running_average=not train, name="norm")(nn.Dense(6, name="first")(x)))
        x = nn.LayerNorm(name="last_norm")(x + y)
        return nn.Dense(3, name="head")(x.mean(axis=1))


WORDS = jnp.asarray(np.random.default_rng(0).integers(0, 7, (5, 4)))
VARIABLES = Network().init(jax.random.key(0), WORDS, train=True)


def bf16(x):
    """The nearest values of bfloat16, by another implementation than XLA's."""
    return np.asarray(x, np.float32).astype(ml_dtypes.bfloat16).astype(np.float32)


def derived(words):
    """What the network computes in training with all that layers give in bfloat16, and the new mean of the norm."""
    p = jax.tree.map(np.asarray, VARIABLES["params"])
    x = bf16(p["embed"]["embedding"])[np.asarray(words)]
    y = bf16(x @ p["first"]["kernel"] + p["first"]["bias"])
    mean, variance = y.mean((0, 1)), y.var((0, 1))
    y = bf16((y - mean) / np.sqrt(variance + 1e-5) * p["norm"]["scale"] + p["norm"]["bias"])
    x = bf16(x + np.maximum(y, 0))
    centred = x - x.mean(-1, keepdims=True)
    x = bf16(centred / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * p["last_norm"]["scale"] + p["last_norm"]["bias"])
    return bf16(x.mean(1)) @ p["head"]["kernel"] + p["head"]["bias"], 0.01 * mean


def test_layers_compute_in_float32_on_what_is_stored():
    @jax.jit
    def logits(variables, words):
        return apply_quantized(Network(), variables, words, train=True, mutable=["batch_stats"], quantizer=STORED)

    found, updated = logits(VARIABLES, WORDS)
    expected, mean = derived(WORDS)
    assert found.dtype == jnp.float32
    assert not np.array_equal(found, bf16(found))  # Logits are not stored.
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert updated["batch_stats"]["norm"]["mean"].dtype == jnp.float32
    np.testing.assert_allclose(updated["batch_stats"]["norm"]["mean"], mean, rtol=1e-5, atol=1e-7)


def test_slopes_are_float32_and_what_is_kept_between_layers_is_not():
    def loss(params):
        variables = {**VARIABLES, "params": params}
        return jnp.sum(apply_quantized(Network(), variables, WORDS, train=False, quantizer=STORED) ** 2)

    kept = jax.eval_shape(lambda params: jax.vjp(loss, params)[1], VARIABLES["params"])
    assert "bfloat16" in {leaf.dtype.name for leaf in jax.tree.leaves(kept)}
    slopes = jax.jit(jax.grad(loss))(VARIABLES["params"])
    assert all(leaf.dtype == jnp.float32 and np.any(leaf) for leaf in jax.tree.leaves(slopes))


def test_by_default_nothing_is_rounded():
    text = str(jax.make_jaxpr(lambda x: apply_quantized(Network(), VARIABLES, x, train=False))(WORDS))
    assert "bf16" not in text
    assert "reduce_precision" not in text


class Body(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return x + nn.Dense(4, name="dense")(x), None


class Looping(nn.Module):
    """Logits in a dictionary; a block that is rematerialised and that a loop repeats."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(4, name="first")(x)
        looped = nn.scan(nn.remat(Body), variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
        x, _ = looped(name="body")(x, None)
        return {"logits": nn.Dense(3, name="head")(x)}


def test_loops_and_vmap():
    x = jax.random.normal(jax.random.key(1), (5, 4))
    variables = Looping().init(jax.random.key(0), x)

    @jax.jit
    def logits(x):
        return apply_quantized(Looping(), variables, x, quantizer=STORED)["logits"]

    found = logits(x)
    p = jax.tree.map(np.asarray, variables["params"])
    y = bf16(x @ p["first"]["kernel"])
    for kernel in p["body"]["dense"]["kernel"]:
        y = bf16(y + bf16(y @ kernel))
    np.testing.assert_allclose(found, y @ p["head"]["kernel"], atol=1e-6)
    np.testing.assert_allclose(jax.vmap(logits)(x[:, None])[:, 0], found, atol=1e-6)
