"""CIFAR-10 at 16×16 pixels (averaged), DeiT with four blocks and patches of 4 pixels: a search over its dense layers.

    python -m launch.fliqs --config=configs/fliqs_cifar10_deit.py --workdir=runs/deit --config.data.data_dir=TFDS_DIR

A short demonstration of five epochs: about two minutes per network on two cores. The search reached 48.6 % at 1.09 ×
the cost of int4, uniform int4 47.4 % (`python -m benchmarks.controllers`).
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
