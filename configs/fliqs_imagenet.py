"""ImageNet, any network of FLIQS, trained as in its Table 4: a search for the format of each layer.

    python -m launch.fliqs --config=configs/fliqs_imagenet.py:resnet18 --workdir=runs/resnet18 \\
        --config.data.data_dir=TFDS_DIR

The name after the colon is that of the network: resnet18, resnet34, resnet50, inception_v3, mobilenetv2,
efficientnet_b0 … efficientnet_b4, deit_ti16, deit_s16, deit_b16. Images are decoded during training; docs/scale.md says
how to prepare them. 350 to 400 epochs take days on a few accelerators; `--config.epochs` shortens all phases in
proportion. Dropout, stochastic depth and averages of weights are those of the networks' own papers
(`configs/recipes.py`). We have not trained it. The paper reports for ResNet-18 of width 1.0 × 69.92 % at 36.46 GBOPs
with int_s, 67.32 % at 29.23 with int4, and 71.17 % at 467.7 with bf16 (FLIQS, Figure 15).
"""

from ml_collections import ConfigDict

from configs import common, recipes

IMAGE_SIZES = {"inception_v3": 299, **{f"efficientnet_b{i}": n for i, n in enumerate((224, 240, 260, 300, 380))}}


def get_config(network: str = "resnet18") -> ConfigDict:
    config = as_in_table4(network)
    recipes.regularise_as_published(config, network)
    return config


def as_in_table4(network: str) -> ConfigDict:
    """The config without what the networks' own papers drop and average."""
    config = common.get_config()
    recipes.train_as_in_table4(config, network)
    config.data.name = "imagenet2012"
    config.data.test_split = "validation"  # the labels of the test split are not public
    config.data.image_size = IMAGE_SIZES.get(network, 224)
    config.data.stream, config.data.workers = True, 16
    config.data.valid_examples = 20_480
    config.valid_batch_size = config.batch_size
    return config
