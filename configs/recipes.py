"""Training recipes of the paper on ImageNet (FLIQS, A.2, A.3 and Table 4)."""

from ml_collections import ConfigDict

BATCH_SIZE = 2048  # A.2
STEPS_PER_EPOCH = 1_281_167 // BATCH_SIZE

RESIDUAL = ("resnet18", "resnet34", "resnet50", "inception_v3")
INVERTED_RESIDUAL = ("mobilenetv2", *(f"efficientnet_b{i}" for i in range(5)))
TRANSFORMER = ("deit_ti16", "deit_s16", "deit_b16")


def train_as_in_table4(config: ConfigDict, network: str) -> None:
    """Sets `config` to train the named network by its recipe (FLIQS, Table 4).

    Weight decay and augmentation, which Table 4 does not state, are those of the networks' own papers; RandAugment
    stands for AutoAugment, and there is no repeated augmentation. Its "ST Multiple 4" is `clip.input_multiple`, which
    is left at 0, so that each format has its own (switchable clipping, FLIQS, §3).

    Raises:
      ValueError: there is no recipe for this network.
    """
    config.model = ConfigDict({"name": network})
    optimizer, data = config.optimizer, config.data
    if network in RESIDUAL:
        _column(config, epochs=350, warmup_epochs=10, input_quantization_step=15_000)
        optimizer.name, optimizer.schedule, optimizer.learning_rate = "sgd", "cosine", 2.64
        optimizer.weight_decay = 1e-4
        data.augment = "resized_crop_flip"
    elif network in INVERTED_RESIDUAL:
        _column(config, epochs=360, warmup_epochs=15, input_quantization_step=18_000)
        optimizer.name, optimizer.schedule, optimizer.learning_rate = "rmsprop", "exponential", 0.256
        optimizer.decay_to = 0.97 ** (360 / 2.4)  # 3 % every 2.4 epochs
        optimizer.weight_decay = 1e-5
        data.augment = "rand_augment"
    elif network in TRANSFORMER:
        _column(config, epochs=400, warmup_epochs=30, input_quantization_step=15_000)
        optimizer.name, optimizer.schedule, optimizer.learning_rate = "adamw", "cosine", 4e-3
        optimizer.weight_decay = 0.05
        data.augment, data.mixup, data.cutmix, data.erasing = "rand_augment", 0.8, 1.0, 0.25
    else:
        known = ", ".join((*RESIDUAL, *INVERTED_RESIDUAL, *TRANSFORMER))
        raise ValueError(f"no recipe for the network {network!r}: there are {known}")


def regularise_as_published(config: ConfigDict, network: str) -> None:
    """Adds what the networks' own papers and reference implementations drop and average, which Table 4 does not state.

    These are dropout and averages of weights (MobileNetV2, EfficientNet, and dropout of Inception-v3), and stochastic
    depth (EfficientNet; DeiT, Table 9 of Touvron et al., 2021). They are meant for hundreds of epochs.
    """
    if network in INVERTED_RESIDUAL:
        config.ema = 0.9999
    if network.startswith("efficientnet"):
        config.model.dropout = {"b0": 0.2, "b1": 0.2, "b2": 0.3, "b3": 0.3, "b4": 0.4}[network[-2:]]
        config.model.stochastic_depth = 0.2
    elif network in ("mobilenetv2", "inception_v3"):
        config.model.dropout = 0.2
    elif network in TRANSFORMER:
        config.model.stochastic_depth = 0.1


def _column(config: ConfigDict, *, epochs: int, warmup_epochs: int, input_quantization_step: int) -> None:
    """Sets a column of Table 4; lengths other than `epochs` become fractions of training."""
    config.batch_size, config.epochs = BATCH_SIZE, float(epochs)
    config.optimizer.warmup_fraction = warmup_epochs / epochs
    config.input_quantization_fraction = input_quantization_step / (epochs * STEPS_PER_EPOCH)


def use_batch_size(config: ConfigDict, batch_size: int) -> None:
    """Changes the batch size, and the learning rate in proportion (linear scaling; Goyal et al., 2017)."""
    config.optimizer.learning_rate *= batch_size / config.batch_size
    config.batch_size = config.valid_batch_size = batch_size
