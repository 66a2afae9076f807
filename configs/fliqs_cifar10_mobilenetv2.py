"""CIFAR-10 averaged to 16×16, MobileNetV2 of width 0.25: a search over its 53 layers, depthwise ones included.

    python -m launch.fliqs --config=configs/fliqs_cifar10_mobilenetv2.py --workdir=runs/mobilenetv2 \\
        --config.data.data_dir=TFDS_DIR

Three epochs, to see it run: about six minutes a network on two cores. One seed gave 45.4 % at 1.05 × the cost of
int4, which alone gave 46.3 %, where bf16 gave 49.7 %: too short for a search over 53 layers (stored by
`python -m launch.report runs/mobilenetv2 --json=benchmarks/results/cifar10_mobilenetv2.json`).
"""

from ml_collections import ConfigDict

from configs import fliqs_cifar10_resnet8


def get_config() -> ConfigDict:
    config = fliqs_cifar10_resnet8.get_config()
    config.model = ConfigDict({"name": "mobilenetv2", "width": 0.25, "small_images": True})
    config.baselines = ("int4", "bf16")
    config.epochs = 3.0
    return config
