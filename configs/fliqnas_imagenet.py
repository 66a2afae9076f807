"""ImageNet: FLIQNAS on MobileNetV2, 53 formats, 17 widths and 17 kernels (FLIQS, §6, Figure 6).

    python -m launch.fliqs --config=configs/fliqnas_imagenet.py --workdir=runs/fliqnas_imagenet \\
        --config.target=2.70

The paper's networks have 13, 17 and 21 billion bit operations: 2.70, 3.53 and 4.36 × the 4.81 of MobileNetV2 in int4.
It counts 230 decisions, which its text does not explain; these 87 describe every network that it can find. Not run by
us: it wants accelerators.
"""

from ml_collections import ConfigDict

from configs import fliqs_imagenet


def get_config() -> ConfigDict:
    config = fliqs_imagenet.get_config("mobilenetv2")
    # The widths are those of A.13.
    config.architecture = ConfigDict({"widths": (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0), "kernels": (3, 5, 7)})
    config.target = 3.53
    config.profile_fraction = 1.0
    return config
