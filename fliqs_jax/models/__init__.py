"""Networks by name: plain Flax linen modules, called as `model(x, train=…)`, without any quantisation code."""

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, get_args, get_origin

import flax.linen as nn

from fliqs_jax.models import efficientnet, mobilenet, recommender
from fliqs_jax.models.blocks import Rate
from fliqs_jax.models.deit import DeiT
from fliqs_jax.models.elastic import Family
from fliqs_jax.models.imagenet_resnet import ImageNetResNet
from fliqs_jax.models.inception import InceptionV3
from fliqs_jax.models.inverted_residuals import BlockNetwork
from fliqs_jax.models.mobilenet import MobileNetV2
from fliqs_jax.models.recommender import CATEGORIES, NUMBERS, Recommender
from fliqs_jax.models.resnet import ResNet
from hwcost import registry

__all__ = ["MODELS", "Network", "create", "drawn", "family", "find", "input_shape", "taken_settings"]


class Network(NamedTuple):
    """A named network.

    Attributes:
      build: `(classes, **settings) → module`.
      input_shape: published shape of one example, `(H, W, C)` for images; () if unknown.
      uncounted: patterns of layer paths that the paper neither searches nor counts (squeeze-and-excitation).
      family: `(module, **settings) → Family`, the networks like one of these whose architecture is searched; or None.
      classes: published number of classes; None if unknown.
    """

    build: Callable[..., nn.Module]
    input_shape: tuple[int, ...]
    uncounted: tuple[str, ...] = ()
    classes: int | None = 1000
    family: Callable[..., Family] | None = None


def _images(size: int) -> tuple[int, int, int]:
    return (size, size, 3)


MODELS: dict[str, Network] = {
    "cifar_resnet": Network(ResNet, _images(32)),
    **{f"resnet{depth}": Network(partial(ImageNetResNet, depth=depth), _images(224)) for depth in (18, 34, 50)},
    "mobilenetv2": Network(MobileNetV2, _images(224), family=mobilenet.family),
    "block_network": Network(BlockNetwork, _images(224)),
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
    "recommender": Network(Recommender, (NUMBERS + CATEGORIES,), classes=1, family=recommender.family),
}


_WIDTHS = 0.02, 50  # factors of the published numbers of channels
_DROPPING = "dropout", "stochastic_depth"
_IN_NAMES = ("depth", "variant")  # settings that the name of a network states


def find(name: str) -> Network:
    """Network `name`, or the one that the user's function `module:function` builds, or that is there, made.

    Raises:
      ValueError: unknown name, or a module or function that cannot be imported.
    """
    entry = registry.lookup("model", name, MODELS)
    if isinstance(entry, Network):
        return entry
    return Network((lambda: entry) if isinstance(entry, nn.Module) else entry, (), classes=None)


def input_shape(name: str, given: Sequence[int] = ()) -> tuple[int, ...]:
    """Shape of one example of the network `name`: the given one, or the published one.

    Raises:
      ValueError: unknown name, a shape with another number of axes than the published one, or none is known.
    """
    published = find(name).input_shape
    if not given and not published:
        raise ValueError(f"model {name!r} needs --input, the shape of one example, as in 32,32,3")
    if given and published and len(given) != len(published):
        raise ValueError(f"model {name!r}: input {tuple(given)} has not the axes of its examples, as in {published}")
    return tuple(given) or published


def create(name: str, *, classes: int | None = None, **settings: Any) -> nn.Module:
    """Module of the network `name` with its settings; a function of the user receives `classes` only if it takes them.

    Without `classes`, a named network has the published number, and a function of the user its default.

    Raises:
      ValueError: unknown name, a setting that the network does not have, or a function that returns no linen module.
    """
    network = find(name)
    build, classes = network.build, network.classes if classes is None else classes
    if classes is not None and classes < 1:
        raise ValueError(f"model {name!r}: classes={classes}: expected 1 or more")
    given = ", ".join(f"{setting}={value!r}" for setting, value in settings.items())
    try:
        preset = build.keywords if isinstance(build, partial) else {}
        if named := [key for key in _IN_NAMES if key in settings and key in preset]:
            raise TypeError(f"its name fixes {', '.join(named)}")
        if name in MODELS:
            _check_types(build, settings)
        if "classes" in inspect.signature(build).parameters and classes is not None:
            settings["classes"] = classes
        model = build(**settings)
    except TypeError as error:
        raise ValueError(f"model {name!r}: {error}; its settings are {given or 'none'}") from error
    if not isinstance(model, nn.Module):
        raise ValueError(f"model {name!r}: expected a flax.linen.Module, got {_other_model(model)}")
    return model


def _other_model(model: Any) -> str:
    """What a function returns instead of a linen module, and what to return."""
    kind = type(model)
    if isinstance(getattr(model, "module", None), nn.Module):
        return f"{kind.__name__}: return its `module`"
    is_nnx = any(base.__module__.startswith("flax.nnx") for base in kind.__mro__)
    return f"{kind.__name__}{' of nnx, which is not taken yet' if is_nnx else ''}"


def taken_settings(name: str, settings: Mapping[str, Any], ours: Collection[str]) -> dict[str, Any]:
    """The settings without those of our networks, `ours`, that a function of the user `name` does not take."""
    if name in MODELS or not callable(build := find(name).build):
        return dict(settings)
    taken = inspect.signature(build).parameters
    is_open = any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values())
    return {key: value for key, value in settings.items() if is_open or key in taken or key not in ours}


def _check_types(build: Callable[..., nn.Module], settings: Mapping[str, Any]) -> None:
    """Raises TypeError for a setting of one of our networks, all of which are flags or sizes, that is neither."""
    parameters = inspect.signature(build).parameters
    for setting in settings.keys() & parameters:
        if not _fits(settings[setting], meant := parameters[setting].annotation):
            raise TypeError(f"{setting}: expected {_expected(meant)}")


def _fits(value: Any, meant: Any) -> bool:
    if get_origin(meant) is tuple:
        members = get_args(meant)
        if not isinstance(value, tuple | list):
            return False
        if members[-1] is Ellipsis:
            return all(_fits(each, members[0]) for each in value)
        return len(value) == len(members) and all(map(_fits, value, members))
    number = isinstance(value, int | float) and not isinstance(value, bool)
    holds = {
        int: lambda: isinstance(value, int) and 0 < value < 2**31,
        float: lambda: _WIDTHS[0] <= value <= _WIDTHS[1],
        Rate: lambda: 0 <= value < 1,
    }
    if meant in holds:
        return number and holds[meant]()
    return isinstance(value, bool) if meant is bool else True


def _expected(meant: Any) -> str:
    if get_origin(meant) is tuple:
        members = get_args(meant)
        return f"tuples of {'these' if members[-1] is Ellipsis else len(members)}: {_expected(members[0])}"
    whole, real = "a whole number above 0", f"a number in {_WIDTHS[0]}…{_WIDTHS[1]}"
    return {bool: "True or False", int: whole, float: real, Rate: "a number from 0, below 1"}.get(meant, str(meant))


def drawn(model: nn.Module) -> tuple[str, ...]:
    """The names of the random numbers that a network of ours draws in training: those of what it drops, if anything."""
    return ("dropout",) if any(getattr(model, name, 0.0) for name in _DROPPING) else ()


def family(name: str, model: nn.Module, settings: Mapping[str, Any]) -> Family:
    """The family of the network `name` around `model`, for `settings` such as widths and kernels to choose from.

    Raises:
      ValueError: unknown name, a network without a family, or settings that it does not have or cannot use.
    """
    build, given = find(name).family, ", ".join(f"{key}={value!r}" for key, value in settings.items())
    if build is None:
        known = ", ".join(known for known, network in MODELS.items() if network.family)
        raise ValueError(f"model {name!r} has none to search ({given}); expected one of {known}")
    try:
        return build(model, **settings)
    except TypeError as error:
        raise ValueError(f"{given}: {error}") from error
