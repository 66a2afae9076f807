"""CIFAR-10 at 16×16 pixels (averaged), MobileNetV2 of width 0.25: a search over all 53 layers, depthwise included.

    python -m launch.fliqs --config=configs/fliqs_cifar10_mobilenetv2.py --workdir=runs/mobilenetv2 \\
        --config.data.data_dir=TFDS_DIR

A short demonstration of three epochs: about six minutes per network on two cores. Over two seeds, the search reached
47.6 % at 1.15 × the cost of int4, uniform int4 45.4 % (`python -m benchmarks.controllers`).
"""

from ml_collections import ConfigDict

from configs import fliqs_cifar10_resnet8


def get_config() -> ConfigDict:
    config = fliqs_cifar10_resnet8.get_config()
    config.model = ConfigDict({"name": "mobilenetv2", "width": 0.25, "small_images": True})
    config.baselines = ("int4", "bf16")
    config.epochs = 3.0
    return config
