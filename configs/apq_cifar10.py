"""APQ on CIFAR-10 at 16×16 pixels (averaged), with networks of nine blocks.

    python -m launch.apq all --config=configs/apq_cifar10.py --workdir=runs/apq_cifar10 --config.data.data_dir=TFDS_DIR

APQ's own space: depths, and bits of weights and inputs apart. The search ends after an hour and a quarter on two cores,
of which supernet training takes twenty minutes, float records ten, and quantised records thirty, as measured with
earlier code. `benchmarks.apq_cifar10` measures a smaller space, that of FLIQNAS.
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
    config.records.quantized = 150
    config.predictor.held_out = 50
    config.predictor.counts = (10, 20, 50)
    config.search.budgets = apq_common.one_each("bitfusion_latency", (0.15, 0.18, 0.22, 0.27, 0.33, 0.42, 0.55, 0.75))
    config.finish.epochs = 2.0
    config.finish.valid_batch_size = 250
    config.finish.optimizer.learning_rate = 0.02
    return config
