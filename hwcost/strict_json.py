"""JSON as it is meant: Python also reads NaN and Infinity, and of a name that occurs twice the last value."""

import json
import math
from typing import Any, NoReturn


def loads_finite(text: str | bytes) -> Any:
    """The document in a text.

    Raises:
      ValueError: it is no JSON, or a number in it is not finite.
    """
    try:
        return json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def named_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of its fields, for `json.loads(…, object_pairs_hook=named_once)`.

    Raises:
      ValueError: a name occurs twice.
    """
    names = [name for name, _ in pairs]
    if repeated := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise ValueError(f"{repeated[0]!r} is there twice")
    return dict(pairs)


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"{text} is no finite number")


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        _refuse(text)
    return number
