"""Losses, qualities and numbers of logits that go together, and those that do not."""

import json
import sys
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fliqs_jax.models.call_finding import called
from fliqs_jax.quality import Quality, accuracy
from launch import data
from launch.model_arguments import several
from launch.training.experiment import prepare_experiment
from launch.training.learning_task import make_task
from launch.training.run_directory import SUMMARY_KEYS
from launch.training.settings import ConfigError


class Sum(nn.Module):
    """Gives as many logits as it is told, without layers."""

    logits: int

    @nn.compact
    def __call__(self, x):
        return jnp.sum(x, axis=(1, 2, 3))[:, None] + self.param("bias", nn.initializers.zeros, (self.logits,))


class Squeezed(Sum):
    """Leaves the axis of the logits out."""

    def __call__(self, x):
        return jnp.sum(x, axis=(1, 2, 3))


def arrays(labels, classes, **others):
    split = data.Split(np.zeros((20, 8, 8, 1), np.float32), labels)
    return data.Arrays(split, split, classes, **others)


def task_of(config, model, source):
    return make_task(config, called(model, several(source.example)), source)


BINARY = np.arange(20) % 2


@pytest.mark.parametrize("source", ["arrays", "digits"])
@pytest.mark.parametrize(
    ("logits", "loss", "quality", "message"),
    [
        (1, "binary_cross_entropy", "accuracy", None),
        (1, "binary_cross_entropy", "auc", None),
        (2, "cross_entropy", "accuracy", None),
        (2, "cross_entropy", "auc", None),
        (3, "cross_entropy", "accuracy", None),
        (1, "cross_entropy", "accuracy", "loss='cross_entropy' on 1 logits: .* two classes or more, got one logit"),
        (2, "binary_cross_entropy", "auc", "loss='binary_cross_entropy' on 2 logits: .* needs one logit, got 2"),
        (3, "cross_entropy", "auc", "quality='auc' on 3 logits: the AUC is of one logit or two, got 3"),
    ],
)
def test_losses_and_qualities_that_go_together(source, logits, loss, quality, message, tiny_config):
    tiny_config.loss, tiny_config.quality = loss, quality
    found = data.find(tiny_config.data) if source == "digits" else arrays(BINARY, logits)
    if source == "digits":
        found.classes = logits
    if message is None:
        task = task_of(tiny_config, Sum(logits), found)
        assert task.labels == ((), max(logits, 2), np.int32, False, (0, 1) if quality == "auc" else ())
        return
    with pytest.raises(ValueError, match=message):
        task_of(tiny_config, Sum(logits), found)


def test_models_that_do_not_fit_the_data_are_refused(tiny_config):
    with pytest.raises(ValueError, match=r"has 5 logits, the data have 10 classes"):
        task_of(tiny_config, Sum(5), arrays(BINARY, 10))
    assert task_of(tiny_config, Sum(16), arrays(BINARY, 10)).labels.classes == 10
    with pytest.raises(ValueError, match=r"expected logits, \[batch, …, logits\]"):
        task_of(tiny_config, Squeezed(1), arrays(BINARY, 1))


def mean_square(logits, batch):
    return jnp.mean((logits - batch["label"]) ** 2)


def stated(logits, batch):
    return mean_square(logits, batch)


stated.label = jax.ShapeDtypeStruct((3,), jnp.float32)


def misstated(logits, batch):
    return mean_square(logits, batch)


misstated.label = (3,)


def explained(logits, batch):
    return jnp.sum((logits - batch["label"]) ** 2), jnp.sum(batch["label"] ** 2)


@pytest.fixture
def mine(monkeypatch):
    """A module of the user's."""
    members = {
        "mean_square": mean_square,
        "stated": stated,
        "misstated": misstated,
        "vector": lambda logits, batch: logits[:, 0],
        "weighted": lambda logits, batch: jnp.mean(logits * batch["weight"]),
        "plain": lambda logits, batch: jnp.mean(logits),
        "taken": accuracy._replace(name="cost"),
        "explained": Quality("explained", explained, lambda sums: 1 - sums[0] / sums[1]),
    }
    module = types.ModuleType("mine_for_tests")
    module.__dict__.update(members)
    monkeypatch.setitem(sys.modules, "mine_for_tests", module)
    return "mine_for_tests"


def test_a_loss_states_labels_that_are_no_class_numbers(mine, tiny_config):
    targets = np.ones((20, 3), np.float32)
    tiny_config.loss, tiny_config.quality = f"{mine}:stated", f"{mine}:explained"
    assert task_of(tiny_config, Sum(3), arrays(targets, 3)).labels == ((3,), None, np.float32, False, ())
    with pytest.raises(data.DataError, match=r"labels are int32 of shape \[N\]: expected float32 of shape \[N, 3\]"):
        task_of(tiny_config, Sum(3), arrays(BINARY, 3))
    tiny_config.loss = f"{mine}:mean_square"
    with pytest.raises(data.DataError, match=r"labels are float32 .* a loss of yours that takes others states them"):
        task_of(tiny_config, Sum(3), arrays(targets, 3))
    tiny_config.loss, tiny_config.quality = f"{mine}:stated", "accuracy"
    with pytest.raises(ValueError, match=r"takes labels float32\[3\], quality='accuracy' class numbers"):
        task_of(tiny_config, Sum(3), arrays(targets, 3))


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("mine_for_tests:vector", r"loss='mine_for_tests:vector' gives ShapeDtypeStruct.*: expected a scalar"),
        ("mine_for_tests:weighted", "loss='mine_for_tests:weighted' on 3 logits: KeyError: 'weight'"),
        ("mine_for_tests:misstated", r"has label \(3,\): expected a jax.ShapeDtypeStruct"),
        ("os:sep", r"loss 'os:sep': expected a function of \(logits, batch\), got str"),
    ],
)
def test_losses_that_fail_are_named(loss, message, mine, tiny_config):
    tiny_config.loss = loss
    with pytest.raises(ValueError, match=message):
        task_of(tiny_config, Sum(3), arrays(BINARY, 3))


def test_smoothing_that_a_loss_does_not_take_is_refused(mine, tiny_config):
    tiny_config.loss, tiny_config.label_smoothing = f"{mine}:plain", 0.3
    with pytest.raises(ValueError, match=r"label_smoothing=0.3: loss='mine_for_tests:plain' is yours and does"):
        task_of(tiny_config, Sum(3), arrays(BINARY, 3))


def test_a_batch_may_hold_what_only_its_loss_reads(mine, tiny_config):
    def make_batch(inputs, labels, rng):
        return {"input": inputs, "label": labels, "weight": np.ones((len(labels), 1), np.float32)}

    tiny_config.loss = f"{mine}:weighted"
    task_of(tiny_config, Sum(3), arrays(BINARY, 3, make_batch=make_batch))


def test_a_loss_reads_the_second_label_of_mixed_images(mine, tiny_config):
    tiny_config.data.mixup, tiny_config.loss = 0.8, f"{mine}:plain"
    with pytest.raises(ConfigError, match="does not read 'mixed_label', the label of the second of two mixed images"):
        prepare_experiment(tiny_config)


def test_qualities_have_names_of_their_own(mine, tiny_config, uninterrupted):
    tiny_config.quality = "mine_for_tests:taken"
    with pytest.raises(ValueError, match="is called 'cost', which summaries use for something else"):
        task_of(tiny_config, Sum(3), arrays(BINARY, 3))
    summary = json.loads((uninterrupted / "summary.json").read_text())
    assert {key for key in summary if "accuracy" not in key} == SUMMARY_KEYS
