"""APQ from end to end on scikit-learn's digits, without any download.

    python -m launch.apq all --config=configs/apq_digits.py --workdir=runs/apq        (or: make apq)

Takes three minutes on two cores. Results are in benchmarks/results/apq_digits.json.
"""

from ml_collections import ConfigDict

from configs import apq_common


def get_config() -> ConfigDict:
    config = apq_common.get_config()
    config.data.valid_examples = 400
    config.supernet.epochs = 80.0
    config.records.update({"quantized": 120, "calibration_batches": 4, "fine_tuning_steps": 10})
    config.predictor.update({"counts": (10, 25, 50), "repeats": 2, "steps": 500, "learning_rate": 2e-3})
    config.search.budgets = apq_common.one_each("bitfusion_latency", (0.012, 0.016, 0.023))
    config.finish.epochs = 12.0
    config.finish.valid_batch_size = 64
    config.finish.together = True
    config.finish.optimizer.learning_rate = 0.02
    return config
