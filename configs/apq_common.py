"""Settings that all APQ experiments share; `launch/apq` runs them. The other APQ configs set only what differs."""

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
    "input_quantization_fraction",
    "profile_fraction",
    "ewgs_strength",
    "recalibration_batches",
    "footprint",
    "log_every",
    "checkpoint_every",
)


def get_config() -> ConfigDict:
    """Shared settings; an experiment sets `space`, or `model`, `architecture` and `formats`, and `search.budgets`."""
    fliqs = common.get_config()
    return ConfigDict(
        {
            "seed": 0,
            "data": fliqs.data.to_dict(preserve_field_references=True),  # keeps placeholders
            "space": "digits",  # apq_jax/architectures.py
            "image_size": 0,  # side in pixels; 0: that of the space
            # In the place of a space, which is then "": a family of FLIQNAS with a format in each layer, told by the
            # settings of configs/common.py.
            "model": {},
            "architecture": {},
            "formats": "",
            # The quantiser of records and of the networks found: gaussian clips each output channel of weights at a
            # stored multiple for Gaussian values; least_divergence clips all weights of a layer where the KL divergence
            # is least (APQ, Eq. 5). docs/apq.md compares them.
            "quantizer": "gaussian",
            # The once-for-all network (apq_jax/shrinking.py).
            "supernet": {
                "epochs": 60.0,
                "batch_size": 64,
                "label_smoothing": 0.1,
                "sampling": "one_random",  # or sandwich
                # Fractions of training: the largest network only, then elastic kernels, channels, depths (APQ, §3.1).
                "stages": {"full": 0.25, "kernel": 0.2, "channels": 0.25, "depth": 0.3},
                # Weight of distillation from the largest network, from the second stage on.
                "distillation": {"weight": 0.5, "temperature": 2.0},
                "optimizer": fliqs.optimizer.to_dict() | {"weight_decay": 1e-4},
                "log_every": 50,
                "checkpoint_every": 500,
            },
            # Genomes with accuracies, the training data of the predictors (apq_jax/records.py).
            "records": {
                "float": 400,
                "quantized": 150,
                "policies": 10,  # bit policies for each network in the second half of the quantised records (APQ, §4)
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
                "weight_decay": 3.0,  # towards zero, or towards the transferred weights
                "held_out": 50,  # quantised records to evaluate on
                "counts": (10, 25, 50, 100),  # numbers of training records of the learning curve (APQ, Figure 7)
                "repeats": 5,  # random subsets of that size, over which the curve averages
            },
            # Evolutionary search (APQ, Algorithm 1) of one network per set of budgets, which hold at the same time
            # (launch/training/budgets.py); `one_each` makes sets of one, and sets may be of unlike costs. Targets in
            # units of a format are relative to the network with that format in all layers: the largest of a space, or
            # the model of a family.
            "search": {
                "budgets": (),
                # Searched as well, for comparison: from_scratch uses the predictor without transfer (APQ, Table 2:
                # Ours-A); with a format of the space, as in ("int4", "int6"), all blocks have that format, and their
                # architecture alone is searched (APQ, Figures 5 and 6).
                "baselines": (),
                "selection": "fittest",  # best genome; nsga2: Pareto front of accuracy and costs within the budgets
                "generations": 500,
                "population": 100,
                "parents": 25,
                "mutation": 0.1,
            },
            # The networks found are quantised and fine-tuned, each as a FLIQS experiment with a fixed genome; these are
            # the settings of configs/common.py that matter in one.
            "finish": {key: fliqs.to_dict()[key] for key in FINISHING}
            | {"epochs": 10.0, "log_every": 50}
            # True: all are trained as parts of the largest network, in one compiled step, and cut out at the end. That
            # pays where compiling takes longer than training. False: each is cut out first, and has a step of its own.
            | {"together": False},
        }
    )


def one_each(cost: str, targets: Sequence[float], target_unit: str = "absolute") -> tuple[tuple[dict[str, Any]], ...]:
    """One set of budgets for each target, with a single budget each."""
    return tuple(({"cost": cost, "target": target, "target_unit": target_unit},) for target in targets)
