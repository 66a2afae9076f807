"""CIFAR-10 at 32×32, any network of FLIQS with a stem for small images, trained as in its Table 4, but shorter.

    python -m launch.fliqs --config=configs/fliqs_cifar10.py:resnet18 --workdir=runs/cifar10-resnet18 \\
        --config.data.data_dir=TFDS_DIR

The name after the colon is that of the network, see fliqs_imagenet.py. Thirty epochs, for one GPU; learning rates are
scaled to the batch size of 128. Our results are from the smaller fliqs_cifar10_resnet8.py, fliqs_cifar10_mobilenetv2.py
and fliqs_cifar10_deit.py, which run on two CPU cores.
"""

from ml_collections import ConfigDict

from configs import common, recipes


def get_config(network: str = "resnet18") -> ConfigDict:
    config = common.get_config()
    recipes.train_as_in_table4(config, network)
    recipes.use_batch_size(config, 128)
    if network in recipes.TRANSFORMER:
        config.model.patch = 4
    else:
        config.model.small_images = True
    config.data.name = "cifar10"
    config.data.augment = "crop_flip"
    config.epochs = 30.0
    config.input_quantization_fraction, config.profile_fraction = 0.2, 1.0
    config.baselines = ("int4", "int8", "bf16")
    common.short_search(config)
    return config
