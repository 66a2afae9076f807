"""ImageNet, published weights: post-training quantisation to int8, calibrated on fifty batches.

    python -m launch.fliqs --config=configs/fliqs_imagenet_ptq.py:resnet18 --workdir=runs/resnet18-int8 \\
        --config.init_from=resnet18.safetensors --config.data.data_dir=TFDS_DIR

Weights are constant; clip thresholds minimise the squared error on the data; batch statistics are recalibrated.
`--config.genome` selects another format or a genome file. `--config.policy=reinforce --config.genome=` with a few
epochs searches formats for the constant weights. `python -m launch.sensitivity runs/resnet18-int8` shows which layers
are sensitive, and assigns formats. We have not run it on ImageNet.
"""

from ml_collections import ConfigDict

from configs import fliqs_imagenet_finetune


def get_config(network: str = "resnet18") -> ConfigDict:
    config = fliqs_imagenet_finetune.get_config(network)
    config.optimizer.name = "frozen"
    config.data.augment = "none"
    config.epochs = 0.01
    config.input_quantization_fraction = 0.5
    config.clip.source = "profiled"
    config.policy, config.genome = "fixed", "int8"
    return config
