"""CIFAR-10 averaged to 16×16, a DeiT of four blocks with patches of 4 pixels: a search over its dense layers.

    python -m launch.fliqs --config=configs/fliqs_cifar10_deit.py --workdir=runs/deit --config.data.data_dir=TFDS_DIR

Five epochs, to see it run: TIME_D
"""

from ml_collections import ConfigDict

from configs import fliqs_cifar10_resnet8


def get_config() -> ConfigDict:
    config = fliqs_cifar10_resnet8.get_config()
    config.model = ConfigDict({"name": "deit_ti16", "channels": 96, "blocks": 4, "patch": 4})
    config.baselines = ("int4", "bf16")
    config.epochs = 5.0
    config.optimizer.learning_rate = 0.02
    return config
