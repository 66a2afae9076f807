"""JSON as the standard has it: Python also reads NaN and Infinity, which no measurement may be."""

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


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"{text} is no finite number")


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        _refuse(text)
    return number
