"""Networks by name. Each is plain Flax linen, called as `model(images, train=…)`, and knows nothing of formats."""

from typing import Any

import flax.linen as nn

from fliqs_jax.models.resnet import ResNet

MODELS: dict[str, type[nn.Module]] = {"cifar_resnet": ResNet}


def create(name: str, **settings: Any) -> nn.Module:
    """The network `name` with its settings.

    Raises:
      ValueError: an unknown name, or a setting that the network does not have.
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}: expected one of {', '.join(MODELS)}")
    try:
        return MODELS[name](**settings)
    except TypeError as error:
        raise ValueError(f"model {name!r}: {error}") from error
