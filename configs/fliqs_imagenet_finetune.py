"""ImageNet, from published weights: a search, or quantisation-aware training in one format, in ten epochs.

    python -m launch.fliqs --config=configs/fliqs_imagenet_finetune.py:resnet18 --workdir=runs/resnet18-finetuned \\
        --config.init_from=resnet18.safetensors --config.data.data_dir=TFDS_DIR \\
        [--config.policy=fixed --config.genome=int8]

The file has the weights of torchvision or timm under their own names. Learning rates are a hundredth of those in FLIQS,
Table 4, scaled to a batch size of 256, without warm-up; inputs are quantised from the second epoch on. We have not
trained it.
"""

from ml_collections import ConfigDict

from configs import common, fliqs_imagenet, recipes


def get_config(network: str = "resnet18") -> ConfigDict:
    config = fliqs_imagenet.as_in_table4(network)
    recipes.use_batch_size(config, 256)
    config.optimizer.learning_rate *= 0.01
    config.optimizer.warmup_fraction = 0.0
    config.epochs = 10.0
    config.input_quantization_fraction, config.profile_fraction = 0.1, 1.0
    config.data.augment, config.data.mixup, config.data.cutmix, config.data.erasing = "resized_crop_flip", 0.0, 0.0, 0.0
    config.init_from = f"{network}.safetensors"
    if network.startswith("resnet"):
        config.model.project_first = False  # as in torchvision
    common.short_search(config)
    return config
