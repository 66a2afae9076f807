"""The default: a small residual network on scikit-learn's digits, which need no download.

    python -m launch.fliqs --config=configs/fliqs_digits.py --workdir=runs/digits        (or: make search)

About a minute on two cores. Expect 97 to 98 % of all four networks: 4 bits lose nothing on digits.
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
