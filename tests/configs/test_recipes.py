"""The recipes are those of Table 4, and fit the networks that they are for."""

import numpy as np
import pytest

from configs import common, fliqs_cifar10, fliqs_imagenet, fliqs_imagenet_finetune, recipes
from fliqs_jax import models
from launch import data
from launch.training.experiment import prepare_experiment

NETWORKS = (*recipes.RESIDUAL, *recipes.INVERTED_RESIDUAL, *recipes.TRANSFORMER)

# FLIQS, Table 4: schedule, base rate, warm-up, optimiser, epochs, first step of quantised activations.
TABLE_4 = {
    "resnet50": ("cosine", 2.64, 10, "sgd", 350, 15_000),
    "inception_v3": ("cosine", 2.64, 10, "sgd", 350, 15_000),
    "deit_b16": ("cosine", 4e-3, 30, "adamw", 400, 15_000),
    "mobilenetv2": ("exponential", 0.256, 15, "rmsprop", 360, 18_000),
    "efficientnet_b4": ("exponential", 0.256, 15, "rmsprop", 360, 18_000),
}


@pytest.mark.parametrize("network", TABLE_4)
def test_recipes_are_table_4(network):
    config = fliqs_imagenet.get_config(network)
    optimizer = config.optimizer
    steps = config.epochs * (1_281_167 // 2048)
    found = (
        optimizer.schedule,
        optimizer.learning_rate,
        round(optimizer.warmup_fraction * config.epochs, 6),
        optimizer.name,
        config.epochs,
        round(config.input_quantization_fraction * steps, 6),
    )
    assert found == TABLE_4[network]
    assert config.label_smoothing == 0.1
    assert config.controller.reinforce.warmup_fraction == 0.25


def test_every_network_of_the_paper_has_one():
    assert {*NETWORKS, "block_network", "cifar_resnet", "recommender"} == set(models.MODELS)
    with pytest.raises(ValueError, match="no recipe for the network 'resnet19': there are resnet18, resnet34"):
        recipes.train_as_in_table4(common.get_config(), "resnet19")


def stand_in(size, classes):
    """Eight images, which stand for a data set."""
    split = data.Split(np.zeros((8, size, size, 3), np.float32), np.zeros(8, np.int32))
    return data.Arrays(train=split, test=split, classes=classes)


def prepared(config, size, classes):
    config.update({"batch_size": 2, "valid_batch_size": 2})
    config.data.valid_examples = 2
    return prepare_experiment(config, source=stand_in(size, classes))


# One or two of each family: the others differ in sizes alone.
FITTED = ("resnet18", "resnet50", "mobilenetv2", "inception_v3", "efficientnet_b0", "deit_ti16")


@pytest.mark.parametrize("network", FITTED)
def test_recipes_fit_their_networks(network):
    small = prepared(fliqs_cifar10.get_config(network), 32, 10)
    assert small.plan.workload[0].output_size[0] >= 8  # the stem leaves small images their size
    whole = prepared(fliqs_imagenet.get_config(network), fliqs_imagenet.get_config(network).data.image_size, 1000)
    assert len(whole.plan.workload) == len(small.plan.workload)
    assert whole.plan.workload[0].macs > small.plan.workload[0].macs


def test_finetuning_is_short_and_gentle():
    config, whole = fliqs_imagenet_finetune.get_config("resnet18"), fliqs_imagenet.get_config("resnet18")
    assert config.epochs < whole.epochs / 20
    assert config.optimizer.learning_rate / config.batch_size == pytest.approx(
        0.01 * whole.optimizer.learning_rate / whole.batch_size
    )
    assert config.init_from == "resnet18.safetensors"
    with pytest.raises(ValueError, match=r"cannot read weights from resnet18\.safetensors"):
        prepared(config, 224, 1000)


def test_what_networks_drop_is_that_of_their_papers_and_not_for_short_trainings():
    told = {}
    for network in NETWORKS:
        config = fliqs_imagenet.get_config(network)
        told[network] = (config.ema, config.model.get("dropout", 0), config.model.get("stochastic_depth", 0))
        assert models.drawn(models.create(**config.model.to_dict(), classes=2)) == ("dropout",) * any(told[network][1:])
        for short in (fliqs_cifar10, fliqs_imagenet_finetune):
            assert not {"dropout", "stochastic_depth"} & set(short.get_config(network).model)
    assert told["resnet50"] == (0.0, 0, 0)
    assert told["inception_v3"] == (0.0, 0.2, 0)
    assert told["mobilenetv2"] == (0.9999, 0.2, 0)
    assert [told[f"efficientnet_b{i}"] for i in (0, 2, 4)] == [(0.9999, rate, 0.2) for rate in (0.2, 0.3, 0.4)]
    assert told["deit_b16"] == (0.0, 0, 0.1)
