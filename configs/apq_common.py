"""What all APQ experiments share. Files beside this one say what differs; `launch/apq` says what is done with it."""

from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from configs import common

FINISHING = (
    "epochs",
    "batch_size",
    "valid_batch_size",
    "label_smoothing",
    "distillation",
    "optimizer",
    "rules",
    "input_quantization_fraction",
    "profile_fraction",
    "ewgs_strength",
    "unsigned_inputs",
    "clip",
    "recalibration_batches",
    "footprint",
    "log_every",
    "checkpoint_every",
)


def get_config() -> ConfigDict:
    """The shared settings; `space` is for the experiment to say."""
    fliqs = common.get_config()
    return ConfigDict(
        {
            "seed": 0,
            "data": fliqs.data.to_dict(preserve_field_references=True),  # placeholders stay such
            "space": "digits",  # apq_jax/architectures.py
            "image_size": 0,  # of the space's networks, if not its own
            # The once-for-all network (apq_jax/shrinking.py).
            "supernet": {
                "epochs": 60.0,
                "batch_size": 64,
                "label_smoothing": 0.1,
                "sampling": "one_random",  # or sandwich
                # Shares of training: the largest network alone, then with elastic kernels, channels and depths.
                "stages": {"full": 0.25, "kernel": 0.2, "channels": 0.25, "depth": 0.3},
                # How much of the loss is learning from the largest network, from the second stage on.
                "distillation": {"weight": 0.5, "temperature": 2.0},
                "optimizer": fliqs.optimizer.to_dict() | {"weight_decay": 1e-4},
                "log_every": 50,
                "checkpoint_every": 500,
            },
            # Genomes and accuracies that the predictors learn from (apq_jax/records.py).
            "records": {
                "float": 400,
                "quantized": 150,
                "policies": 10,  # of bits, for each network of the second half of the quantised ones
                "batch_size": 64,
                "calibration_batches": 8,
                "fine_tuning_steps": 20,
                "fine_tuning_rate": 0.01,
            },
            "predictor": {
                "hidden": 400,
                "steps": 2000,
                "batch_size": 128,
                "learning_rate": 1e-3,
                "weight_decay": 3.0,  # to zero, or to what was transferred: records are few, and their accuracies noisy
                "held_out": 50,  # of the quantised records, to judge by
                "counts": (10, 25, 50, 100),  # numbers of records to learn from, for the curve
                "repeats": 5,  # random choices of that many records, which the curve is the mean of
            },
            # A network is searched for each set of budgets, which hold at once (launch/training/budgets.py); `one_each`
            # makes sets of one. A format as target_unit is that of all layers of the largest network.
            "search": {
                "budgets": (),
                "selection": "fittest",  # the best for each set; nsga2: all on the front of fitness and costs below it
                "generations": 500,
                "population": 100,
                "parents": 25,
                "mutation": 0.1,
            },
            # What is found is cut out, quantised and fine-tuned as a FLIQS experiment with fixed formats: those of its
            # settings (configs/common.py) that act in one.
            "finish": {key: fliqs.to_dict()[key] for key in FINISHING}
            | {"epochs": 10.0, "rules": (".*: per_tensor",), "log_every": 50}
            | {"clip": fliqs.clip.to_dict() | {"source": "least_divergence"}},
        }
    )


def one_each(cost: str, targets: Sequence[float], target_unit: str = "absolute") -> tuple[tuple[dict[str, Any]], ...]:
    """A set of one budget for each target of a cost."""
    return tuple(({"cost": cost, "target": target, "target_unit": target_unit},) for target in targets)
