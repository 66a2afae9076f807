"""Recommender on Criteo's click log: a search over its low-rank layers, with AUC as the quality (FLIQS, A.13).

    python -m launch.fliqs --config=configs/fliqs_criteo.py --workdir=runs/criteo --config.data.file=train.txt

One epoch, as is common for click logs. We had only the first 2,000 of the 45 million lines. On these, with
`--config.batch_size=32 --config.valid_batch_size=300 --config.epochs=2 --config.data.buckets=200
--config.data.valid_examples=300 --config.data.test_fraction=0.2`, the search reaches an AUC of 67.5 % at 1.7 × the cost
of int4, uniform int4 67.4 %, and bf16 69.2 % (benchmarks/results/criteo_sample.json).
"""

from ml_collections import ConfigDict, config_dict

from configs import common


def get_config() -> ConfigDict:
    config = common.get_config()
    config.data = ConfigDict(
        {
            "name": "click_log",
            "file": config_dict.placeholder(str),  # separated by tabs or commas, with or without a header
            "buckets": 10_000,  # hash buckets of each category
            "test_fraction": 0.1,  # of the lines, the last ones
            "valid_examples": 100_000,  # set aside for the reward
        }
    )
    config.model = ConfigDict({"name": "recommender", "width": 1.0, "rank": 128, "embedding": 16})
    config.model.buckets = config.data.get_ref("buckets")
    config.loss, config.label_smoothing, config.quality = "binary_cross_entropy", 0.0, "auc"
    config.optimizer.name, config.optimizer.learning_rate, config.optimizer.weight_decay = "adamw", 1e-3, 1e-4
    config.batch_size, config.valid_batch_size = 2048, 8192
    config.epochs = 1.0
    config.formats, config.target = "int_l", 1.5
    config.baselines = ("int4", "int8", "bf16")
    config.checkpoint_every = 1000
    common.short_search(config)
    return config
