"""ImageNet, any network of the paper, trained as in its Table 4: a search for each layer's format.

    python -m launch.fliqs --config=configs/fliqs_imagenet.py:resnet18 --workdir=runs/resnet18 \\
        --config.data.data_dir=TFDS_DIR

The name after the colon is the network's: resnet18, resnet34, resnet50, inception_v3, mobilenetv2, efficientnet_b0 …
efficientnet_b4, deit_ti16, deit_s16, deit_b16. Images are decoded while training. 350 to 400 epochs: days on a few
accelerators, out of reach of a laptop; `--config.epochs` shortens everything in proportion. We have not trained it. The
paper's figures for int_s at 1.0 × width: ResNet-18 69.92 % at 36.46 GBOPs, between int4 (67.32 % at 29.23) and bf16
(71.17 % at 467.7).
"""

from ml_collections import ConfigDict

from configs import common, recipes

IMAGE_SIZES = {"inception_v3": 299, **{f"efficientnet_b{i}": n for i, n in enumerate((224, 240, 260, 300, 380))}}


def get_config(network: str = "resnet18") -> ConfigDict:
    config = common.get_config()
    recipes.train_as_in_table4(config, network)
    config.data.name = "imagenet2012"
    config.data.test_split = "validation"  # the labels of its test split are secret
    config.data.image_size = IMAGE_SIZES.get(network, 224)
    config.data.stream, config.data.workers = True, 16
    config.data.valid_examples = 20_480
    config.valid_batch_size = config.batch_size
    return config
