"""Descriptions of number formats for people."""

import numpy as np

from aqt_like.formats import Format, parse_format

_LISTED_VALUES = 64
_LINE_WIDTH = 96


def describe(name: str) -> str:
    """A description of the format `name`: codes, range, exponent bias, its values if they are few, and a number line.

    Raises:
      UnknownFormatError: `name` is no number format.
    """
    fmt = parse_format(name)
    magnitudes = fmt.magnitudes()
    smallest_normal = 2.0**fmt.smallest_exponent
    lines = [f"{fmt.name}: {fmt.bits} bits", f"  values               {_count(fmt, magnitudes)}"]
    lines.append(f"  range                {fmt.lowest:.9g} … {fmt.largest:.9g}")
    if smallest_normal <= fmt.largest:
        lines.append(f"  fraction bits        {fmt.mantissa_bits}")
        lines.append(f"  exponent bias        {1 - fmt.smallest_exponent}")
        lines.append(f"  smallest normal      {smallest_normal:.9g}")
        if fmt.mantissa_bits:
            lines.append(f"  smallest subnormal   {magnitudes[1]:.9g}")
    else:
        lines.append("  step                 1, evenly spaced")
    if not fmt.scaled:
        lines.append("  scale                none: tensors are used as they are")
    if len(magnitudes) <= _LISTED_VALUES:
        sign = "" if fmt.lowest == 0 else "± "
        lines.append(f"  all of them          {sign}{' '.join(f'{value:.9g}' for value in magnitudes)}")
    lines.append(f"  0 {_number_line(magnitudes)} {fmt.largest:.9g}")
    return "\n".join(lines)


def explain(name: str) -> None:
    """Prints `describe(name)`."""
    print(describe(name))


def _count(fmt: Format, magnitudes: np.ndarray) -> str:
    if fmt.lowest == 0:
        return f"{len(magnitudes)}"
    return f"{2 * len(magnitudes) - 1}, zero counted once, of {2**fmt.bits} codes"


def _number_line(magnitudes: np.ndarray) -> str:
    """A line of text from 0 to the largest magnitude, with a mark at each value of the format."""
    line = ["·"] * _LINE_WIDTH
    for position in np.unique(np.round(magnitudes / magnitudes[-1] * (_LINE_WIDTH - 1)).astype(int)):
        line[position] = "|"
    return "".join(line)
