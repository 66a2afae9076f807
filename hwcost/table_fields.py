"""Files of tables as rows of fields, and fields as numbers: nothing is guessed, rounded or left out without a word."""

import csv
import io
import json
import math
import pathlib
from typing import Any

import numpy as np

from hwcost.strict_json import named_once

LEAST_COST, MOST_COST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


class LutError(ValueError):
    """Raised for a table that cannot be read or lacks a setting; the message names the file or the nearest settings."""


def read_text(path: pathlib.Path) -> str:
    """The text of a file, without the byte order mark that spreadsheets write.

    Raises:
      LutError: it cannot be read, or is no UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise LutError(f"cannot read the table {path}: {error.strerror}") from error
    except ValueError as error:
        raise LutError(f"cannot read the table {path}: {error}") from error


def read_object(path: pathlib.Path) -> dict[str, Any]:
    """A JSON object, in which no key occurs twice at any level.

    Raises:
      LutError: the file holds something else.
    """
    text = read_text(path)
    try:
        document = json.loads(text, object_pairs_hook=named_once)
    except (ValueError, RecursionError) as error:
        raise LutError(f"cannot read the table {path}: {error}") from error
    if not isinstance(document, dict):
        raise LutError(f"cannot read the table {path}: expected an object, got {type(document).__name__}")
    return document


def read_rows(path: pathlib.Path) -> list[dict[str, str]]:
    """The lines of a CSV file by the names in its first line.

    Raises:
      LutError: two columns have one name, columns are separated by something else, a line has more or fewer fields, or
        is none of a table.
    """
    lines = csv.reader(io.StringIO(read_text(path)))
    try:
        numbered = [(lines.line_num, fields) for fields in lines if fields]
    except csv.Error as error:
        raise LutError(f"{path}, line {lines.line_num}: {error}") from error
    names = numbered[0][1] if numbered else []
    if len(set(names)) < len(names):
        raise LutError(f"{path}: two columns have one name: {', '.join(names)}")
    if len(names) == 1 and any(mark in names[0] for mark in ";\t"):
        raise LutError(f"{path}: expected commas between columns, got {names[0]!r}")
    for number, fields in numbered:
        if len(fields) != len(names):
            raise LutError(
                f"{path}, line {number}: {len(fields)} fields for {len(names)} columns: expected numbers with a "
                "decimal point, not a comma"
            )
    return [dict(zip(names, fields, strict=True)) for _, fields in numbered[1:]]


def read_number(told: str, value: Any, *, lowest: float = 0.0) -> float:
    """A finite number of at least `lowest`, which may be written as text.

    Raises:
      LutError: it is something else; the message begins with `told`.
    """
    try:
        number = math.nan if isinstance(value, bool) or not isinstance(value, int | float | str) else float(value)
    except (ValueError, OverflowError):
        number = math.nan
    if not lowest <= number < math.inf:
        point = "; a fraction has a decimal point" if isinstance(value, str) and "," in value else ""
        raise LutError(f"{told}{value!r}: expected a number from {lowest:g}{point}")
    return number


def read_whole(told: str, value: Any, *, lowest: int, highest: int = 2**31 - 1) -> int:
    """A whole number of `lowest` to `highest`; see `read_number`."""
    number = read_number(told, value, lowest=lowest)
    if number != int(number) or number > highest:
        raise LutError(f"{told}{value!r}: expected a whole number of {lowest} to {highest}")
    return int(number)


def read_cost(told: str, value: Any) -> float:
    """A cost: above 0, since no layer is free, and within float32, in which genomes are priced; see `read_number`."""
    number = read_number(told, value)
    if not LEAST_COST <= number <= MOST_COST:
        raise LutError(f"{told}{value!r}: expected a number above 0, from {LEAST_COST:.1e} to {MOST_COST:.1e}")
    return number
