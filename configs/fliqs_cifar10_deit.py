"""CIFAR-10 averaged to 16×16, a DeiT of four blocks with patches of 4 pixels: a search over its dense layers.

    python -m launch.fliqs --config=configs/fliqs_cifar10_deit.py --workdir=runs/deit --config.data.data_dir=TFDS_DIR

Five epochs, to see it run: about two minutes a network on two cores. One seed gave 49.0 % at 1.09 × the cost of int4,
which alone gave 47.2 %, where bf16 gave 50.3 % (stored by `python -m launch.report runs/deit
--json=benchmarks/results/cifar10_deit.json`).
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
