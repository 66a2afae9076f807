"""CIFAR-10 at 12×12 pixels (averaged): APQ over the family of configs/fliqnas_cifar10.py, with a format in each layer.

    python -m launch.apq all --config=configs/apq_fliqnas_cifar10.py --workdir=runs/apq_fliqnas \\
        --config.data.data_dir=TFDS_DIR

Networks, formats, data and target are those of the search of FLIQNAS, so that a genome of either can be trained and
rated by the other (docs/apq.md). Not run by us as it stands, but with fewer blocks (`benchmarks.apq_cifar10`).
"""

from ml_collections import ConfigDict

from configs import apq_cifar10, apq_common, fliqnas_cifar10


def get_config() -> ConfigDict:
    config, fliqnas = apq_cifar10.get_config(), fliqnas_cifar10.get_config()
    config.space, config.image_size = "", 0
    config.model, config.architecture, config.formats = fliqnas.model, fliqnas.architecture, fliqnas.formats
    config.data.image_size = fliqnas.data.image_size
    config.search.budgets = apq_common.one_each(fliqnas.cost, (2.7, fliqnas.target, 4.36), fliqnas.target_unit)
    return config
