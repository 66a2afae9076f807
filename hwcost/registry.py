"""Things by name: ours from a table, the user's as `package.module:function`."""

import importlib
from collections.abc import Mapping
from typing import Any


def lookup(what: str, name: str, ours: Mapping[str, Any]) -> Any:
    """`ours[name]`, or what `name` imports where it is `package.module:function`.

    Args:
      what: the kind of thing, for messages.
      name: as in a config.
      ours: the table.

    Raises:
      ValueError: an unknown name, or a module or function that cannot be imported.
    """
    if name in ours:
        return ours[name]
    module, separator, function = name.partition(":")
    if not separator:
        raise ValueError(
            f"unknown {what} {name!r}: expected one of {', '.join(ours)}, or your own as package.module:function"
        )
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{what} {name!r}: {error}") from error
