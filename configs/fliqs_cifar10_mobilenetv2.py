"""CIFAR-10 averaged to 16×16, MobileNetV2 of width 0.25: a search over its 53 layers, depthwise ones included.

    python -m launch.fliqs --config=configs/fliqs_cifar10_mobilenetv2.py --workdir=runs/mobilenetv2 \\
        --config.data.data_dir=TFDS_DIR

Three epochs, to see it run; no figures are stored for it yet.
"""

from ml_collections import ConfigDict

from configs import fliqs_cifar10_resnet8


def get_config() -> ConfigDict:
    config = fliqs_cifar10_resnet8.get_config()
    config.model = ConfigDict({"name": "mobilenetv2", "width": 0.25, "small_images": True})
    config.baselines = ("int4", "bf16")
    config.epochs = 3.0
    return config
