"""Data sets by name."""

from collections.abc import Callable

from ml_collections import ConfigDict

from hwcost import registry
from launch.data.clicks import ClickLog
from launch.data.contract import DataError, Source
from launch.data.images import Digits, TfdsImages

SOURCES: dict[str, Callable[[ConfigDict], Source]] = {"digits": Digits, "click_log": ClickLog}


def find(config: ConfigDict) -> Source:
    """Data set `config.name`: one of `SOURCES`, the user's `package.module:function`, or one of TensorFlow Datasets.

    Raises:
      DataError: there is no such data set, or it cannot be used.
    """
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
