"""CIFAR-10 averaged to 16×16, ResNet-8 of width 16."""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.get_config()
    config.data.name = "cifar10"
    config.data.image_size = 16
    config.data.augment = "crop_flip"
    config.baselines = ("int4", "int8", "bf16")
    config.epochs = 12.0
    config.valid_batch_size = 256
    config.profile_fraction = 1.0
    common.short_search(config)
    return config
