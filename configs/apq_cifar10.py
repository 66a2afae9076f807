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
    config.data.valid_examples = 2000
    config.supernet.epochs = 6.0
    config.supernet.batch_size = 128
    config.records.batch_size = 128
    config.records.float = 300
    config.records.quantized = 120
    config.predictor.held_out = 40
    config.predictor.counts = (10, 20, 40)
    config.search.budgets = tuple(f"bitfusion_latency={ms}" for ms in (0.15, 0.2, 0.25, 0.3, 0.4, 0.5))
    config.finish.epochs = 2.0
    config.finish.valid_batch_size = 250
    config.finish.optimizer.learning_rate = 0.02
    return config
