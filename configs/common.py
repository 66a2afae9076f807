"""Settings that all FLIQS experiments share: those of the paper (FLIQS, A.2 to A.5), where it states them.

The other configs start from these and set only what differs. Every key can be overridden on the command line, such as
`--config.target=1.3`; an unknown key is an error.
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    """Shared settings; an experiment sets `data.name` and `model`."""
    return ConfigDict(
        {
            "seed": 0,
            "data": {
                # digits, the name of a tfds image set, or your own as package.module:function (launch/data/arrays.py).
                "name": "digits",
                "data_dir": config_dict.placeholder(str),  # data directory of tfds; its default if unset
                "download": False,  # whether tfds may download and prepare it
                "test_split": "test",  # name in tfds
                "image_size": config_dict.placeholder(int),  # side in pixels; the size of the data set if unset
                "valid_examples": 5000,  # training examples set aside for the reward
                "augment": "none",  # none, crop_flip, resized_crop_flip, rand_augment
                "mixup": 0.0,  # strengths, 0 is off
                "cutmix": 0.0,
                "erasing": 0.0,  # probability
                "stream": False,  # decodes images as they are needed, instead of loading all of them into memory
                "workers": 0,  # decoding processes for stream; 0: threads of this process
                "decoder": "pillow",  # pillow, or simplejpeg, which is faster (requirements-images.txt)
                "on_bad_record": "error",  # error, or skip: images that cannot be read are left out and counted
            },
            "model": {"name": "cifar_resnet", "depth": 8, "width": 16},
            # Where the logits are in what a model of yours returns, as in logits or 0; if empty, it is found and told.
            "output": "",
            # How a model of yours is called, if not as docs/own_models.md says: package.module:function of
            # (model, inputs, train), where model is bound: function(…) calls it.
            "apply": "",
            # What is searched beside formats (FLIQS, §6), with options among which is what the model has: `widths` (1)
            # and `kernels` (3) of each block of mobilenetv2, `widths` and `ranks` (1) of each layer of the recommender,
            # as in {"widths": (0.5, 1.0, 1.5), "kernels": (3, 5)}.
            "architecture": {},
            # Initial weights: a safetensors file with the names of torchvision or timm (whose ResNets need
            # model.project_first=False), or with Flax names. A classifier with other classes is initialised anew.
            "init_from": "",
            "init_prefix": "",  # what the file has before the paths of the model, as in bert
            "init_anew": (),  # expressions: variables whose path matches one start anew, as in ("head",)
            "epochs": 10.0,
            "batch_size": 128,
            "valid_batch_size": 128,
            "loss": "cross_entropy",  # cross_entropy, binary_cross_entropy, or package.module:function
            "label_smoothing": 0.1,
            "quality": "accuracy",  # in the reward and of the result: accuracy, auc, or package.module:name
            # Teacher: the directory of a finished run. Its soft targets are mixed into the training loss.
            "distillation": {"teacher": "", "weight": 0.5, "temperature": 2.0},
            "optimizer": {
                # sgd, adamw, rmsprop, frozen for post-training quantisation, or a function of the learning rate, as
                # optax:lion or package.module:function, which gets what it takes of weight_decay and momentum.
                "name": "sgd",
                "learning_rate": 0.1,
                "momentum": 0.9,  # β1 of adamw
                "weight_decay": 5e-4,
                "warmup_fraction": 0.05,  # of training
                "schedule": "cosine",  # cosine, exponential
                "decay_to": 0.01,  # final learning rate of the exponential schedule, relative to learning_rate
            },
            "ema": 0.0,  # decay of the average of weights that is evaluated and served; 0: the last weights are
            # Format space: int_s, int_l, fp_s, fp_l (FLIQS, Table 5), or format names joined by commas; int4/int8 means
            # weights in int4 and inputs in int8. Empty with a genome file: the formats in that file.
            "formats": "int_s",
            # Rules that restrict the formats of layers: 'EXPRESSION: WHAT' over layer paths, such as ("stem: bf16",
            # "shortcut: tie"), or the options of an architecture: r"\.kernel: 3". See aqt_like/path_rules.py; python -m
            # launch.layers lists the paths.
            "rules": (),
            "products": False,  # whether products of activations (attention) are searched; if not, they are float
            # A controller searches: reinforce is the paper's, fisher takes its scores from gradients, and your own is
            # package.module:function (fliqs_jax/controller.py). uniform is random search; fixed trains config.genome,
            # a format name or a genome file.
            "policy": "reinforce",
            "genome": "",
            "baselines": (),  # formats of uniform networks that are trained as well, by the same compiled step
            # Cost: a name in hwcost/costs.py, the file of a lookup table (hwcost/measured_tables.py), or your own cost
            # model as package.module:name (hwcost/cost_model.py).
            "cost": "bit_operations",
            # Cost target C_T, relative to the cost with all layers in the format target_unit; with "absolute", in the
            # unit of the cost.
            "target": 1.15,
            "target_unit": "int4",
            # Additional budgets, such as ({"cost": "fpga_area", "target": 1.2, "target_unit": "int4"},). The reward
            # uses the largest cost / target.
            "budgets": (),
            # Several values of `target`, as in (1.2, 1.6, 2.4), which one training takes in turn: a network for each.
            "targets": (),
            "controller": {
                # freeze_fraction: from this fraction of training on, the genome that the controller prefers is trained,
                # and no other. 1.0, as in the paper: the search goes on to the end. 0.0 with fisher: it searches
                # nothing, and spends the budget as if all layers were alike and each bit halved the loss.
                "reinforce": {
                    "reward": "absolute",  # absolute, one_sided, soft_exponential, hard_exponential
                    "gamma": 1.0,  # weight of the cost in the reward
                    "learning_rate": 4.6e-3,
                    "momentum": 0.95,
                    "baseline_momentum": 0.95,
                    # Genomes sampled per step for the cost part of the policy gradient; 0, as in the paper: the trained
                    # one.
                    "cost_samples": 0,
                    "paired": False,  # whether a second genome on the same batch is the baseline, not a running mean
                    # Whether genomes are sampled such that the expected cost is the target from the first step on. The
                    # reward is the quality alone then; reward, gamma and cost_samples have no effect.
                    "within_budget": False,
                    "entropy_schedule": "cosine",  # cosine, linear, constant, none
                    "entropy_end": 0.5,  # β_H at the end of training (FLIQS, Eq. 9)
                    "warmup_fraction": 0.25,  # of training, with uniformly sampled formats
                    "freeze_fraction": 1.0,
                },
                "fisher": {
                    "examples": 8,  # of a training batch, on which scores of inputs are measured
                    "freeze_fraction": 0.25,
                },
            },
            # Two-phase quantisation (FLIQS, A.2): weights from the start, inputs (activations) from this fraction on.
            "input_quantization_fraction": 0.2,
            "profile_fraction": 0.2,  # inputs are profiled until here; 1.0: to the end
            "ewgs_strength": 0.0,  # of element-wise gradient scaling; 0: straight-through estimator
            "unsigned_inputs": True,  # whether inputs that are never negative use unsigned integers
            # Scales of weights and inputs: float32, or power_of_two for hardware that shifts instead of multiplying.
            "scales": "float32",
            # Type of the codes that layers multiply; sums are float32. auto: float32 on CPUs, else bfloat16.
            "compute": "auto",  # auto, float32, bfloat16
            # Precision of float32 products on TPUs and GPUs, as of attention and ignored layers.
            "precision": "default",  # default, high, highest
            # Type in which activations are stored between layers; layers and statistics compute in float32.
            "activations": "float32",  # float32, bfloat16
            # Blocks that the backward pass computes again instead of keeping all their values, for less memory: an
            # expression over paths of modules, as in "block" for all of a network of ours, or "^[a-e]" of inception_v3.
            "rematerialise": "",
            "clip": {
                # precomputed on synthetic data, or on a batch: profiled (least squares), least_divergence (APQ, Eq. 5)
                "source": "precomputed",
                "distribution": "gaussian",  # of the synthetic data: gaussian, laplacian
                # Clip threshold of inputs in all formats, in root mean squares, as the 4 of Table 4; 0: each format's.
                "input_multiple": 0.0,
            },
            "recalibration_batches": 50,  # means over so many batches replace batch statistics; 0 keeps them
            "random_search": {"draws": 20000, "evaluated": 32},  # with policy=uniform
            # Rates for the footprint in summaries (hwcost/carbon.py): power draw of the machine, emissions of its
            # electricity (kg of CO2e per kWh), and lowest and highest price per hour.
            "footprint": {"watts": 188.2, "kilograms_per_kilowatt_hour": 0.4327, "dollars_per_hour": (0.74, 2.48)},
            "log_every": 20,
            "checkpoint_every": 200,
        }
    )


def short_search(config: ConfigDict) -> None:
    """Sets the controller for runs of thousands of steps; the paper's runs have tens to hundreds of thousands (A.2).

    In such short runs, the paper's entropy weight of 0.5 settles the policy before rewards differ significantly. Its
    learning rate hardly moves the logits, so the product of learning rate and steps is kept instead.
    """
    settings = config.controller.reinforce
    settings.learning_rate = 0.02
    settings.entropy_end = 0.01
    settings.gamma = 0.3
    settings.cost_samples = 64
