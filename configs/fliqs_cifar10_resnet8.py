"""CIFAR-10 at 16×16 pixels (averaged), ResNet-8 of width 16: a search over int4, int8, bf16, and uniform baselines.

    python -m launch.fliqs --config=configs/fliqs_cifar10_resnet8.py --workdir=runs/cifar10 \\
        --config.data.data_dir=TFDS_DIR

About two and a half minutes per network on two cores. The search reaches 73.6 % at 1.14 × the cost of int4, uniform
int4 71.6 %, and bf16 74.6 % (benchmarks/results/cifar10.json). `--config.data.image_size=32` takes four times as long.
"""

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
    config.policy = "fisher"
    return config
