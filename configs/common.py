"""What all FLIQS experiments share: the paper's settings (A.2 to A.5), where it states them.

Files beside this one start from here and say only what differs. Every key can be overridden on the command line, as in
`--config.target=1.3`; a key that does not exist is an error.
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    """The shared settings; `data.name` and `model` are for the experiment to say."""
    return ConfigDict(
        {
            "seed": 0,
            "data": {
                # digits, the name of a tfds image set, or your own as package.module:function (launch/data/arrays.py).
                "name": "digits",
                "data_dir": config_dict.placeholder(str),  # where tfds has its data; its own default if unset
                "download": False,  # whether tfds may download and prepare it
                "test_split": "test",  # what tfds calls it
                "image_size": config_dict.placeholder(int),  # the images' own if unset
                "valid_examples": 5000,  # training examples set aside for the reward
                "augment": "none",  # none, crop_flip, resized_crop_flip, rand_augment
                "mixup": 0.0,  # strengths, 0 is off
                "cutmix": 0.0,
                "erasing": 0.0,  # probability
                "stream": False,  # decodes images as they are needed, instead of all of them into memory at the start
                "workers": 0,  # processes that do so; 0: threads of this one
            },
            "model": {"name": "cifar_resnet", "depth": 8, "width": 16},
            # Weights to start from: a safetensors file in torchvision's or timm's naming (whose ResNets need
            # model.project_first=False), or in Flax's own. A classifier of other classes starts anew.
            "init_from": "",
            "epochs": 10.0,
            "batch_size": 128,
            "valid_batch_size": 128,
            "loss": "cross_entropy",  # cross_entropy, binary_cross_entropy, or package.module:function
            "label_smoothing": 0.1,
            "quality": "accuracy",  # in the reward and at the end: accuracy, auc, or package.module:name
            # A finished run whose network is the teacher: its soft targets are mixed into the training loss.
            "distillation": {"teacher": "", "weight": 0.5, "temperature": 2.0},
            "optimizer": {
                "name": "sgd",  # sgd, adamw, rmsprop, or frozen for post-training quantisation
                "learning_rate": 0.1,
                "momentum": 0.9,  # the first of adamw's two
                "weight_decay": 5e-4,
                "warmup_fraction": 0.05,  # of training
                "schedule": "cosine",  # cosine, exponential
                "decay_to": 0.01,  # share of the learning rate at the end of the exponential schedule
            },
            # The space: int_s, int_l, fp_s, fp_l, or format names joined by commas; int4/int8 has weights in int4 and
            # inputs in int8. Empty with a genome file: the formats that it names.
            "formats": "int_s",
            # Which layers may have which: 'EXPRESSION: WHAT' over layer paths, as in ("stem: bf16", "shortcut: tie").
            # aqt_like/path_rules.py says more; python -m launch.layers lists the paths.
            "rules": (),
            "products": False,  # whether products of activations (attention) are searched too, or stay in float
            # reinforce searches; uniform is random search; fixed trains config.genome, a format name or a genome file.
            "policy": "reinforce",
            "genome": "",
            "baselines": (),  # formats whose uniform networks are trained as well, by the same compiled step
            # What is paid: one of hwcost/costs.py, a table's file (hwcost/measured_tables.py), or your own as
            # package.module:name (hwcost/cost_model.py).
            "cost": "bit_operations",
            # Its target, in units of the cost with every layer in target_unit (a format), or "absolute".
            "target": 1.15,
            "target_unit": "int4",
            # Further budgets that hold as well, as in ({"cost": "fpga_area", "target": 1.2, "target_unit": "int4"},).
            # The reward sees the cost that is highest over its target.
            "budgets": (),
            "reward": "absolute",  # absolute, one_sided, soft_exponential, hard_exponential
            "gamma": 1.0,
            "policy_learning_rate": 4.6e-3,
            "policy_momentum": 0.95,
            "baseline_momentum": 0.95,
            # Genomes priced per step for the cost's part of the policy gradient; the paper's 0: the trained one only.
            "cost_samples": 0,
            "entropy_schedule": "cosine",  # cosine, linear, constant, none
            "entropy_end": 0.5,
            "warmup_fraction": 0.25,  # of training, during which formats are drawn uniformly
            # Two-phase quantisation: weights from the start, inputs (activations) from here on, profiled until then.
            "input_quantization_fraction": 0.2,
            "profile_fraction": 0.2,  # inputs are profiled until here; 1.0 follows them to the end
            "ewgs_strength": 0.0,  # of element-wise gradient scaling; 0 is the plain straight-through estimator
            "unsigned_inputs": True,  # inputs that are never negative use the unsigned twin of an integer format
            "clip": {
                # precomputed on synthetic data; or on a real batch: profiled (least squares), least_divergence (APQ)
                "source": "precomputed",
                "distribution": "gaussian",  # of the synthetic data: gaussian, laplacian
            },
            "recalibration_batches": 50,  # for the batch statistics under the final genome
            "random_search": {"draws": 20000, "evaluated": 32},  # with policy=uniform
            # For the footprint that summaries tell (hwcost/carbon.py): what the machine draws, what its electricity
            # emits (kg of CO2e per kWh) and what an hour of it costs, from … to.
            "footprint": {"watts": 188.2, "kilograms_per_kilowatt_hour": 0.4327, "dollars_per_hour": (0.74, 2.48)},
            "log_every": 20,
            "checkpoint_every": 200,
        }
    )


def short_search(config: ConfigDict) -> None:
    """Controller settings for thousands of steps, where the paper's are for tens and hundreds of thousands.

    Its entropy weight of 0.5 then settles the policy before the rewards are told apart, and its learning rate moves the
    logits too little: the product of rate and steps is kept instead.
    """
    config.policy_learning_rate = 0.02
    config.entropy_end = 0.01
    config.gamma = 0.3
    config.cost_samples = 64
