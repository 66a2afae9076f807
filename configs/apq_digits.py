"""APQ from end to end on scikit-learn's digits, without any download.

    python -m launch.apq all --config=configs/apq_digits.py --workdir=runs/apq        (or: make apq)

Takes five minutes on two cores. Results are in benchmarks/results/apq_digits.json.
"""

from ml_collections import ConfigDict

from configs import apq_common


def get_config() -> ConfigDict:
    config = apq_common.get_config()
    config.data.valid_examples = 400
    config.supernet.epochs = 100.0
    config.predictor.update({"repeats": 3, "steps": 1000, "learning_rate": 2e-3})
    config.search.budgets = apq_common.one_each("bitfusion_latency", (0.012, 0.016, 0.023, 0.036))
    config.finish.epochs = 20.0
    config.finish.together = True
    config.finish.optimizer.learning_rate = 0.02
    return config
