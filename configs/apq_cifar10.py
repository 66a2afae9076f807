"""APQ on CIFAR-10 averaged to 16×16, with networks of nine blocks.

python -m launch.apq all --config=configs/apq_cifar10.py --workdir=runs/apq_cifar10 --config.data.data_dir=TFDS_DIR
"""

from ml_collections import ConfigDict

from configs import apq_common


def get_config() -> ConfigDict:
    config = apq_common.get_config()
    config.space = "cifar"
    config.image_size = 16
    config.data.name = "cifar10"
    config.data.image_size = 16
    config.data.augment = "crop_flip"
    config.supernet.epochs = 10.0
    config.supernet.batch_size = 128
    config.records.batch_size = 128
    config.predictor.counts = (25, 50, 100, 200, 400)
    config.predictor.held_out = 100
    config.records.float = 2000
    config.records.quantized = 500
    config.finish.epochs = 2.0
    config.finish.optimizer.learning_rate = 0.02
    return config
