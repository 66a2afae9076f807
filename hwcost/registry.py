"""Lookup by name: built-in objects from a table, the user's own as `package.module:function`."""

import importlib
from collections.abc import Mapping
from typing import Any


def lookup(kind: str, name: str, built_in: Mapping[str, Any]) -> Any:
    """Returns `built_in[name]`, or the object that `name`, as `package.module:function`, imports.

    Args:
      kind: the kind of object, for error messages.
      name: a name, as in a config.
      built_in: the built-in objects by name.

    Raises:
      ValueError: the name is unknown, or the object cannot be imported.
    """
    if name in built_in:
        return built_in[name]
    module, separator, function = name.partition(":")
    if not separator:
        raise ValueError(
            f"unknown {kind} {name!r}: expected one of {', '.join(built_in)}, or your own as package.module:function"
        )
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{kind} {name!r}: {error}") from error
