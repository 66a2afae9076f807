"""Rematerialised blocks compute what they did: losses, gradients, batch statistics, profiles, dropout and scores."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from aqt_like import format_choice, interception
from aqt_like.formats import format_space
from fliqs_jax.models.call_finding import called
from fliqs_jax.models.rematerialisation import check_expression, rematerialised

PATHS = ("stem", "block1/dense", "block2/dense", "head")
FORMATS = format_space("int_s")


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        y = nn.Dense(6, name="dense")(x)
        y = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm")(y)
        return x + nn.Dropout(0.3, deterministic=not train)(nn.relu(y))


class Network(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Dense(6, name="stem")(x)
        x = Block(name="block2")(Block(name="block1")(x, train=train), train=train)
        return nn.Dense(3, name="head")(x)


X = jax.random.normal(jax.random.key(1), (8, 5))
MODEL = called(Network(), X)
VARIABLES = MODEL.init(jax.random.key(0), X)


def loss(expression, params, probed):
    """Of a step of training with all layers in int4, as in a search with Fisher scores, and what it updates."""
    bank = format_choice.format_bank(FORMATS, use_unsigned=True)
    multiples = format_choice.precomputed_clip_multiples(FORMATS, len(PATHS), "gaussian", use_unsigned=True)
    profile = interception.LayerCalibration(jnp.ones(4), -jnp.ones(4), jnp.ones(4, jnp.int32))
    formats = format_choice.chosen_formats(bank, multiples, jnp.zeros(4, jnp.int32), profile, jnp.asarray(True))
    active = jnp.asarray(True)
    probe = format_choice.probe_all_formats(bank, multiples, profile, probed, active=active, examples=4)
    variables = {
        **VARIABLES,
        "params": params,
        "calibration": interception.empty_calibration(PATHS),
        "formats": interception.by_layer(PATHS, formats._replace(probe=probe)),
    }
    with rematerialised(expression):
        logits, updated = interception.apply_quantized(
            MODEL, variables, X, train=True, rngs=jax.random.key(2), mutable=["batch_stats", "calibration"]
        )
    return jnp.mean(jnp.square(logits)), updated


def gradients(expression):
    differentiated = jax.value_and_grad(lambda *args: loss(expression, *args), argnums=(0, 1), has_aux=True)
    return jax.jit(differentiated)(VARIABLES["params"], jnp.zeros((4, 2, 3)))


def kept(expression):
    def backward(params):
        return jax.vjp(lambda params: loss(expression, params, jnp.zeros((4, 2, 3)))[0], params)[1]

    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(backward, VARIABLES["params"])))


def test_blocks_and_layers_compute_what_they_did_and_keep_less():
    plain = gradients("")
    _, (_, squares) = plain
    assert float(jnp.min(jnp.max(squares, axis=(1, 2)))) > 0
    chex.assert_trees_all_close(gradients("block|head"), plain, rtol=1e-4, atol=1e-6)
    assert kept("block|head") < kept("block") < 0.8 * kept("")


def test_expressions_that_mean_no_module_are_refused():
    check_expression("", MODEL, X)
    check_expression("block", MODEL, X)
    with pytest.raises(ValueError, match=r"rematerialise='stage': .*: it matches none of stem, block1, block2, head"):
        check_expression("stage", MODEL, X)
    with pytest.raises(
        ValueError, match=r"rematerialise='\(': expected a regular expression over paths of modules: mis"
    ):
        check_expression("(", MODEL, X)
