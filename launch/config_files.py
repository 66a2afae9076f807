"""stand-in until the packaging branch lands."""

from ml_collections import ConfigDict


def load_config(name: str) -> ConfigDict:
    import importlib

    return importlib.import_module(f"configs.{name}").get_config()
