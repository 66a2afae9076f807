"""APQ as in the paper (APQ, §4): ImageNet at 224 pixels, 21 blocks, 80,000 float and 5,000 quantised records.

Budgets and baselines are those of its Table 2 and Figures 5 and 6.

    python -m launch.apq all --config=configs/apq_imagenet.py --workdir=runs/apq_imagenet \\
        --config.data.data_dir=TFDS_DIR

For accelerators; we have not run it. The paper reports 2,400 GPU hours for the once-for-all network (APQ, Table 2).
"""

from ml_collections import ConfigDict

from configs import apq_common


def get_config() -> ConfigDict:
    config = apq_common.get_config()
    config.space = "paper"
    config.data.name = "imagenet2012"
    config.data.test_split = "validation"
    config.data.image_size = 224
    config.data.valid_examples = 10000
    config.data.augment = "resized_crop_flip"
    config.data.stream = True
    config.supernet.epochs = 300.0
    config.supernet.batch_size = 2048
    config.records.float = 80000
    config.records.quantized = 5000
    config.records.batch_size = 256
    config.records.fine_tuning_steps = 1000
    config.predictor.held_out = 2000
    config.predictor.counts = (100, 300, 1000, 3000)
    config.search.budgets = (
        *apq_common.one_each("bitfusion_latency", (7.2, 8.4, 9.5, 12.2)),
        *apq_common.one_each("bitfusion_energy", (9.14, 11.81)),
        *apq_common.one_each("bit_operations", (13.2e9, 16.5e9, 23.6e9)),
    )
    config.search.baselines = ("from_scratch", "int4", "int6")
    config.finish.epochs = 15.0
    return config
