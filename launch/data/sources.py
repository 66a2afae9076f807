"""Data sets by name."""

from collections.abc import Callable

from ml_collections import ConfigDict

from hwcost import registry
from launch.config_files import load_config
from launch.data.clicks import ClickLog
from launch.data.contract import DataError, Source
from launch.data.images import Digits, TfdsImages

SOURCES: dict[str, Callable[[ConfigDict], Source]] = {"digits": Digits, "click_log": ClickLog}

_SETTINGS_OF_ALL = ("name", "valid_examples")


def find(config: ConfigDict) -> Source:
    """Data set `config.name`: one of `SOURCES`, the user's `package.module:function`, or one of TensorFlow Datasets.

    Raises:
      DataError: there is no such data set, it cannot be used, lacks a setting, or does not use one.
    """
    if missing := [key for key in settings_of(config.name) if key not in (*config, *_SETTINGS_OF_ALL)]:
        raise DataError(f"data.name={config.name!r}: config.data lacks {', '.join(missing)}, see configs/common.py")
    for key, expected in unused_settings(config).items():
        raise DataError(f"data.{key}={config[key]!r}: data.name={config.name!r} does not use it, expected {expected}")
    if config.name in SOURCES:
        return SOURCES[config.name](config)
    if ":" not in config.name:
        return TfdsImages(config)
    try:
        source = registry.lookup("data set", config.name, SOURCES)()
    except (TypeError, ValueError) as error:
        raise DataError(f"data.name={config.name!r}: {error}") from error
    needed = ("example", "classes", "train_examples", "open")
    if missing := [name for name in needed if not hasattr(source, name)]:
        raise DataError(
            f"data.name={config.name!r} gives a {type(source).__name__} without {', '.join(missing)}: expected "
            "launch.data.Arrays, or another launch.data.Source"
        )
    return source


def unused_settings(config: ConfigDict) -> dict[str, str]:
    """Settings that the data set does not use, and that are not as in `configs/common.py`; what is expected, by key."""
    used, defaults = settings_of(config.name), load_config("common").data
    unused = [key for key in config if key not in used and (key not in defaults or config[key] != defaults[key])]
    return {key: repr(defaults[key]) if key in defaults else "no such key" for key in unused}


def settings_of(name: str) -> tuple[str, ...]:
    """The settings in `config.data` that a data set uses, by its name; a function of the user takes none."""
    if name in SOURCES or ":" in name:
        return (*_SETTINGS_OF_ALL, *getattr(SOURCES.get(name), "settings", ()))
    return tuple(load_config("common").data)
