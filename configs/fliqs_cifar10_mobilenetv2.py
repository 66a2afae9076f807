"""CIFAR-10 at 16×16 pixels (averaged), MobileNetV2 of width 0.25: a search over all 53 layers, depthwise included.

    python -m launch.fliqs --config=configs/fliqs_cifar10_mobilenetv2.py --workdir=runs/mobilenetv2 \\
        --config.data.data_dir=TFDS_DIR

A short demonstration of three epochs: about six minutes per network on two cores. With one seed, the search
reached 45.4 % at 1.05 × the cost of int4, uniform int4 46.3 %, and bf16 49.7 %: too short for a search over 53 layers
(stored by `python -m launch.report runs/mobilenetv2 --json=benchmarks/results/cifar10_mobilenetv2.json`).
"""

from ml_collections import ConfigDict

from configs import fliqs_cifar10_resnet8


def get_config() -> ConfigDict:
    config = fliqs_cifar10_resnet8.get_config()
    config.model = ConfigDict({"name": "mobilenetv2", "width": 0.25, "small_images": True})
    config.baselines = ("int4", "bf16")
    config.epochs = 3.0
    return config
