"""Lookup by name: built-in objects from a table, the user's own as `package.module:function`."""

import importlib
import inspect
from collections.abc import Mapping, Sequence
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
        ours = f"one of {', '.join(built_in)}, or your own as " if built_in else ""
        raise ValueError(f"unknown {kind} {name!r}: expected {ours}package.module:function")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, TypeError, ValueError, SyntaxError) as error:
        raise ValueError(f"{kind} {name!r}: {error}") from error


def lookup_function(kind: str, name: str, built_in: Mapping[str, Any], arguments: Sequence[str]) -> Any:
    """Returns what `lookup` does; raises ValueError if that is the user's and no function of so many `arguments`."""
    found = lookup(kind, name, built_in)
    if name in built_in:
        return found
    try:
        inspect.signature(found).bind(*arguments)
    except (TypeError, ValueError) as error:
        got = "another one" if callable(found) else type(found).__name__
        raise ValueError(f"{kind} {name!r}: expected a function of ({', '.join(arguments)}), got {got}") from error
    return found
