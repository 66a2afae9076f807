"""Default experiment: a small ResNet on scikit-learn's digits, without any download.

    python -m launch.fliqs --config=configs/fliqs_digits.py --workdir=runs/digits        (or: make search)

About a minute on two cores. All four networks reach 97 to 98 %: 4 bits are enough for digits.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.get_config()
    config.data.valid_examples = 400
    config.model.width = 4
    config.epochs = 300.0
    config.baselines = ("int4", "int8", "bf16")
    common.short_search(config)
    return config
