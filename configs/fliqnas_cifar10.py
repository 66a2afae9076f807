"""CIFAR-10 at 12×12 pixels (averaged): FLIQNAS, a search over formats, widths and kernels (FLIQS, §6, Figure 6).

    python -m launch.fliqs --config=configs/fliqnas_cifar10.py --workdir=runs/fliqnas \\
        --config.data.data_dir=TFDS_DIR

The network is of MobileNetV2's blocks, with the stem, the stages and the head of APQ's space for CIFAR-10: 32 formats,
10 widths and 10 kernels. `--config.architecture="{}"` searches formats alone (FLIQS), `--config.rules="('.*: int8',)"`
the architecture alone, at one format (the paper's quantised NAS). `--config.rules="(r'\\.kernel: 3',)"` searches no
kernels. `--config.controller.reinforce.within_budget=True` keeps the expected cost at the target from the first step
on.
"""

from ml_collections import ConfigDict

from configs import fliqs_cifar10_resnet8


def get_config() -> ConfigDict:
    config = fliqs_cifar10_resnet8.get_config()
    config.data.image_size = 12
    config.model = ConfigDict(
        {
            "name": "mobilenetv2",
            "small_images": True,
            "stages": ((1, 8, 1, 1), (6, 16, 3, 1), (6, 24, 3, 2), (6, 40, 3, 2)),
            "stem": 16,
            "head": 160,
            "multiple": 2,  # so that all widths differ
        }
    )
    config.architecture = ConfigDict({"widths": (0.5, 0.75, 1.0, 1.25, 1.5), "kernels": (3, 5, 7)})
    config.policy = "reinforce"
    config.target = 3.53  # × int4 of the network with widths of 1 and kernels of 3
    config.baselines = ("int4", "int8")
    config.epochs = 3.0
    return config
