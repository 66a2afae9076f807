"""Networks by name. Each is plain Flax linen, called as `model(x, train=…)`, and knows nothing of formats."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn

from fliqs_jax.models import efficientnet
from fliqs_jax.models.deit import DeiT
from fliqs_jax.models.imagenet_resnet import ImageNetResNet
from fliqs_jax.models.inception import InceptionV3
from fliqs_jax.models.mobilenet import MobileNetV2
from fliqs_jax.models.recommender import CATEGORIES, NUMBERS, Recommender
from fliqs_jax.models.resnet import ResNet


class Network(NamedTuple):
    """A named network.

    Attributes:
      build: `(classes, **settings) → module`.
      input_shape: of the example that it was published for.
      uncounted: patterns of layer paths that the paper neither searches nor counts (squeeze-and-excitation).
    """

    build: Callable[..., nn.Module]
    input_shape: tuple[int, ...]
    uncounted: tuple[str, ...] = ()


def _images(size: int) -> tuple[int, int, int]:
    return (size, size, 3)


MODELS: dict[str, Network] = {
    "cifar_resnet": Network(ResNet, _images(32)),
    **{f"resnet{depth}": Network(partial(ImageNetResNet, depth=depth), _images(224)) for depth in (18, 34, 50)},
    "mobilenetv2": Network(MobileNetV2, _images(224)),
    "inception_v3": Network(InceptionV3, _images(299)),
    **{
        f"efficientnet_b{i}": Network(
            partial(efficientnet.EfficientNet, variant=i), _images(variant[-1]), ("squeeze_excite",)
        )
        for i, variant in enumerate(efficientnet.VARIANTS)
    },
    "deit_ti16": Network(partial(DeiT, channels=192, heads=3), _images(224)),
    "deit_s16": Network(partial(DeiT, channels=384, heads=6), _images(224)),
    "deit_b16": Network(partial(DeiT, channels=768, heads=12), _images(224)),
    "recommender": Network(Recommender, (NUMBERS + CATEGORIES,)),
}


def find(name: str) -> Network:
    """The network `name`.

    Raises:
      ValueError: an unknown name.
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}: expected one of {', '.join(MODELS)}")
    return MODELS[name]


def create(name: str, **settings: Any) -> nn.Module:
    """The network `name` with its settings.

    Raises:
      ValueError: an unknown name, or a setting that the network does not have.
    """
    try:
        return find(name).build(**settings)
    except TypeError as error:
        raise ValueError(f"model {name!r}: {error}") from error
