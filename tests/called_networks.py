"""Tiny networks that are called in unusual ways, and their data, as users name them: `tests.called_networks:…`."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from launch import data

LENGTH, WORDS, CLASSES = 6, 16, 3


class Sentences(nn.Module):
    """Inputs by name, dropout, drop-path, statistics over a named axis, partitioned kernels, a cache, a dict."""

    @nn.compact
    def __call__(self, ids, mask, deterministic=True):
        partitioned = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
        x = nn.Embed(WORDS, 8, name="embed")(ids) * mask[..., None]
        x = nn.Dense(8, kernel_init=partitioned, name="up")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=deterministic, axis_name="batch", name="norm")(x))
        x = nn.Dropout(0.3, deterministic=deterministic)(x)
        calls = self.variable("cache", "calls", jnp.zeros, ())
        if not deterministic:
            x = x * jax.random.bernoulli(self.make_rng("drop_path"), 0.9, (len(x), 1, 1))
            calls.value += 1
        return {"hidden": x, "logits": nn.Dense(CLASSES, name="head")(x.mean(1))}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of a network, with the flag of its mode, as in Flax's examples."""

    features: int = 8
    deterministic: bool = True


class _Residual(nn.Module):
    settings: Settings

    @nn.compact
    def __call__(self, x, _):
        y = nn.Dense(self.settings.features, name="fc")(x)
        return x + nn.Dropout(0.3, deterministic=self.settings.deterministic)(nn.relu(y)), None


class Sequences(nn.Module):
    """Two inputs in a tuple, a recurrent cell, layers in a loop with dropout, a flag in a field's field, a tuple."""

    settings: Settings = Settings()

    @nn.compact
    def __call__(self, x, lengths):
        x = nn.RNN(nn.SimpleCell(self.settings.features), name="rnn")(x, seq_lengths=lengths)[:, -1]
        rngs, own = {"params": True, "dropout": True}, {"params": 0}
        x, _ = nn.scan(_Residual, variable_axes=own, split_rngs=rngs, length=2)(self.settings, name="blocks")(x, None)
        return nn.Dense(CLASSES, name="head")(x), x


class Raw(nn.Module):
    """Logits that only a call of the user's makes: it has another method, and arguments of its own."""

    def setup(self):
        self.encoder, self.dropout, self.head = nn.Dense(8), nn.Dropout(0.3), nn.Dense(CLASSES)

    def encode(self, x, *, drop):
        return self.dropout(nn.relu(self.encoder(x)), deterministic=not drop)

    def __call__(self, x):
        raise NotImplementedError


def call_raw(model, inputs, train):
    """An adapter of `Raw`."""
    return model.head(model.encode(inputs["x"].mean(1), drop=train))


def sentences() -> data.Arrays:
    """Whole numbers and masks by name; the label is the first word, modulo."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, WORDS, (48, LENGTH)).astype(np.int32)
    inputs = {"ids": ids, "mask": (rng.random((48, LENGTH)) < 0.8).astype(np.float32)}
    split = data.Split(inputs, ids[:, 0] % CLASSES)
    return data.Arrays(split, split, CLASSES)


def sequences() -> data.Arrays:
    """Sequences and their lengths, in a tuple."""
    rng = np.random.default_rng(0)
    x, lengths = rng.standard_normal((48, LENGTH, 4)).astype(np.float32), rng.integers(1, LENGTH + 1, 48)
    split = data.Split((x, lengths.astype(np.int32)), np.arange(48) % CLASSES)
    return data.Arrays(split, split, CLASSES)


def named_sequences() -> data.Arrays:
    """The sequences alone, in a dict whose names are no arguments."""
    source = sequences()
    split = data.Split({"x": source.train.inputs[0]}, source.train.labels)
    return data.Arrays(split, split, CLASSES)


def optimizer(learning_rate: optax.Schedule, weight_decay: float) -> optax.GradientTransformation:
    """An optimiser of one's own."""
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.sgd(learning_rate))


def head_optimizer(learning_rate: optax.Schedule) -> optax.GradientTransformation:
    """An optimiser that knows weights by name."""
    kinds = {"embed": "frozen", "up": "frozen", "norm": "frozen", "head": "trained"}
    return optax.multi_transform({"frozen": optax.set_to_zero(), "trained": optax.sgd(learning_rate)}, kinds)


class Holder:
    """An object that holds a module, as those of Hugging Face."""

    module = Raw()


def nnx_network() -> nnx.Module:
    """A network of Flax's other interface."""
    return nnx.Linear(2, 2, rngs=nnx.Rngs(0))
