"""The default: few bits for a small residual network on scikit-learn's digits, which need no download.

    python -m launch.fliqs --config=configs/fliqs_digits.py --workdir=runs/digits        (or: make search)

A minute and a half on two cores. Expect about 98 % at 1.6 × the cost of int2, which alone reaches 94 %; int3 needs
2.25 × for as much (`python -m benchmarks.digits`, benchmarks/results/digits.json).
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.get_config()
    config.data.valid_examples = 400
    config.model.width = 4
    config.epochs = 300.0
    config.formats = "int2,int3,int4,int6,int8"
    config.target = 1.6
    config.target_unit = "int2"
    config.baselines = ("int2", "int3", "int4")
    common.short_search(config)
    config.policy = "fisher"
    return config
