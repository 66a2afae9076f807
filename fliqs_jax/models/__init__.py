"""Networks by name: plain Flax linen modules, called as `model(x, train=…)`, without any quantisation code."""

import inspect
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
from hwcost import registry

__all__ = ["MODELS", "Network", "create", "find", "mode"]


class Network(NamedTuple):
    """A named network.

    Attributes:
      build: `(classes, **settings) → module`.
      input_shape: published shape of one example, `(H, W, C)` for images; () if unknown.
      uncounted: patterns of layer paths that the paper neither searches nor counts (squeeze-and-excitation).
      classes: published number of classes.
    """

    build: Callable[..., nn.Module]
    input_shape: tuple[int, ...]
    uncounted: tuple[str, ...] = ()
    classes: int = 1000


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
    "recommender": Network(Recommender, (NUMBERS + CATEGORIES,), classes=1),
}


def find(name: str) -> Network:
    """Network `name`, or the one that the user's function `module:function` builds.

    Raises:
      ValueError: unknown name, or a module or function that cannot be imported.
    """
    entry = registry.lookup("model", name, MODELS)
    return entry if isinstance(entry, Network) else Network(entry, ())


def create(name: str, *, classes: int, **settings: Any) -> nn.Module:
    """Module of the network `name` with its settings; a function of the user receives `classes` only if it takes them.

    Raises:
      ValueError: unknown name, a setting that the network does not have, or a function that returns no linen module.
    """
    build = find(name).build
    try:
        if "classes" in inspect.signature(build).parameters:
            settings["classes"] = classes
        model = build(**settings)
    except TypeError as error:
        raise ValueError(f"model {name!r}: {error}") from error
    if not isinstance(model, nn.Module):
        raise ValueError(f"model {name!r}: expected a flax.linen.Module, got {type(model).__name__}")
    return model


def mode(model: nn.Module, *, train: bool) -> dict[str, Any]:
    """Keyword arguments that select training or inference: `train=…`, or none if the model has no such argument."""
    return {"train": train} if "train" in inspect.signature(type(model).__call__).parameters else {}
