"""Number formats: the values that each can represent, and tables of formats for jitted code.

A `Format` describes one format by a few numbers. A `FormatTable` stacks formats into arrays, so that a traced index can
select one: a single compiled step serves all formats.

An integer grid is a float grid on which every number is subnormal, so integers and floats need no separate treatment
(`numerics.round_to_grid`).
"""

import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

FORMAT_SPACES: dict[str, tuple[str, ...]] = {
    # FLIQS, Table 5.
    "int_s": ("int4", "int8", "bf16"),
    "int_l": ("int4", "int5", "int6", "int7", "int8", "bf16"),
    "fp_s": ("e2m1", "e4m3", "bf16"),
    "fp_l": (
        "e2m1", "e2m2", "e2m3", "e2m4", "e2m5", "e3m1", "e3m2", "e3m3", "e3m4",
        "e4m1", "e4m2", "e4m3", "e5m1", "e5m2", "e6m1", "bf16",
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Format:
    """A number format: the values ±k · 2^(e − mantissa_bits), e ≥ smallest_exponent, between lowest and largest.

    Attributes:
      name: lower-case name, as parsed by `parse_format`.
      bits: total storage bits, the b of bit operations (FLIQS, Eq. 1).
      smallest_exponent: exponent of the smallest normal number; below it values are evenly spaced (subnormals).
      mantissa_bits: stored fraction bits.
      largest: largest representable value; larger inputs saturate.
      lowest: smallest representable value: −largest, or 0 for unsigned formats.
      scaled: whether tensors are scaled so that the clip threshold maps to `largest`; False for bf16 and fp32.
    """

    name: str
    bits: int
    smallest_exponent: int
    mantissa_bits: int
    largest: float
    lowest: float
    scaled: bool

    def magnitudes(self) -> np.ndarray:
        """All values from 0 up, ascending, float64[N]; a signed format also has their negatives.

        Raises:
          ValueError: the format has more than 16 bits, and too many values to list.
        """
        if self.bits > 16:
            raise ValueError(f"{self.name} has too many values to list")
        fractions = np.arange(2**self.mantissa_bits) / 2**self.mantissa_bits
        exponents = np.arange(self.smallest_exponent, np.floor(np.log2(self.largest)) + 1)
        normal = (2.0**exponents)[:, None] * (1 + fractions)
        values = np.concatenate([2.0**self.smallest_exponent * fractions, normal.ravel()])
        return values[values <= self.largest]

    @property
    def is_integer(self) -> bool:
        """Whether the format is an integer: its values are evenly spaced."""
        return self.name.removeprefix("u").startswith("int")

    @property
    def significant_bits(self) -> int:
        """The number of bits between the first and the last nonzero bit of any value: up to 8 are exact in bfloat16."""
        return self.mantissa_bits + (0 if self.is_integer else 1)

    @property
    def unsigned_twin(self) -> "Format":
        """The unsigned integer of the same number of bits; other formats return themselves."""
        return parse_format("u" + self.name) if self.name.startswith("int") else self

    @property
    def weights(self) -> "Format":
        """This format: as the format of a layer it applies to weights and input alike."""
        return self

    @property
    def inputs(self) -> "Format":
        """This format, as in `weights`."""
        return self


@dataclasses.dataclass(frozen=True)
class FormatPair:
    """A layer's format whose weights and input differ, named as in `int4/int8`."""

    weights: Format
    inputs: Format

    @property
    def name(self) -> str:
        """Both names, the weights' first, as in `int4/int8`."""
        return f"{self.weights.name}/{self.inputs.name}"

    @property
    def bits(self) -> int:
        """The number of bits of the wider format."""
        return max(self.weights.bits, self.inputs.bits)

    @property
    def is_integer(self) -> bool:
        """Whether both formats are integers."""
        return self.weights.is_integer and self.inputs.is_integer


LayerFormat = Format | FormatPair


class UnknownFormatError(ValueError):
    """Raised for a name that is no number format."""


@functools.cache
def parse_format(name: str) -> Format:
    """Parses `int2`…`int16`, `uint2`…`uint16`, `eXmY` (sign, X exponent bits, Y mantissa bits), `bf16` or `fp32`.

    `eXmY` has subnormals, no infinities or NaN, and an exponent bias of 2^(X−1) − 1 (FLIQS, A.5). Two variants reserve
    codes, as hardware does: `e4m3fn` reserves the largest magnitude for NaN (e4m3fn ends at 448, e4m3 at 480), and
    `eXmYieee` the largest exponent for infinity and NaN (e5m2ieee ends at 57,344). `intN` is symmetric: int4 is −7…7.

    Raises:
      UnknownFormatError: the name is none of these. If `ml_dtypes`, ONNX or XLA give it to a format that has another
        name here, the message has that name.
    """
    if name == "bf16":
        return Format(name, 16, -126, 7, float(jnp.finfo(jnp.bfloat16).max), float(jnp.finfo(jnp.bfloat16).min), False)
    if name == "fp32":
        return Format(name, 32, -126, 23, float(np.finfo(np.float32).max), float(np.finfo(np.float32).min), False)
    if match := re.fullmatch(r"(u?)int([1-9]\d*)", name):
        bits = int(match[2])
        magnitude_bits = bits if match[1] else bits - 1
        if 2 <= bits <= 16:
            largest = float(2**magnitude_bits - 1)
            return Format(name, bits, magnitude_bits, magnitude_bits, largest, 0.0 if match[1] else -largest, True)
    if match := re.fullmatch(r"e([1-7])m(\d)((?<=e4m3)fn|ieee)?", name):
        exponent_bits, mantissa_bits, reserved = int(match[1]), int(match[2]), match[3]
        bias = 2 ** (exponent_bits - 1) - 1
        # The last code in use, in ascending order of magnitudes: all codes, all but one, or all but the last exponent.
        last = 2 ** (exponent_bits + mantissa_bits) - 1 - {None: 0, "fn": 1, "ieee": 2**mantissa_bits}[reserved]
        exponent, fraction = divmod(last, 2**mantissa_bits)
        if exponent > 0:
            largest = (1 + fraction / 2**mantissa_bits) * 2.0 ** (exponent - bias)
            return Format(name, 1 + exponent_bits + mantissa_bits, 1 - bias, mantissa_bits, largest, -largest, True)
    raise UnknownFormatError(f"unknown number format {name!r}: {_advice(name)}")


# Names elsewhere, less a prefix as in `float8_e5m2` (ml_dtypes), `float8e5m2` (ONNX) and `f8e5m2` (XLA).
_ELSEWHERE = {
    # Finite formats without NaN codes. The values of `fnuz` ones are a fraction of ours, which the scale makes up for.
    **{"e2m1fn": "e2m1", "e2m3fn": "e2m3", "e3m2fn": "e3m2"},
    **{"e4m3fnuz": "e4m3", "e4m3b11fnuz": "e4m3", "e5m2fnuz": "e5m2"},
    # With infinity and NaN, for which the names here have a suffix; and names that only lack the prefix.
    **{"e3m4": "e3m4ieee", "e4m3": "e4m3ieee", "e5m2": "e5m2ieee", "e4m3fn": "e4m3fn"},
    **{"e2m1": "e2m1", "e2m3": "e2m3", "e3m2": "e3m2", "bfloat16": "bf16", "float32": "fp32", "f32": "fp32"},
}


def _advice(name: str) -> str:
    """What to write instead of a name that is no format."""
    bare, prefixes = re.subn(r"^(float\d_?|f\d)(?=e\d)", "", name.lower())
    if bare in _ELSEWHERE and (prefixes or bare == name):  # An upper-case E4M3 may be either of two.
        return f"use {_ELSEWHERE[bare]!r}"
    if re.fullmatch(r"e8m\d(fnu?|ieee)?", bare):
        return (
            "exponents of 8 bits serve as shared scales (granularity.power_of_two), since no float32 is 2^128 or more"
        )
    if match := re.fullmatch(r"(e[1-7]m\d)fn", bare):
        return f"no library defines it; use {match[1]!r}, which has no NaN"
    return "expected int2…int16, uint2…uint16, eXmY with 1 ≤ X ≤ 7 and one digit Y (or eXmYieee, e4m3fn), bf16 or fp32"


def format_pair(weights: str, inputs: str) -> LayerFormat:
    """The layer format of a weight format and an input format, by name; a plain `Format` if they are the same."""
    return parse_format(weights) if weights == inputs else FormatPair(parse_format(weights), parse_format(inputs))


def parse_layer_format(name: str) -> LayerFormat:
    """Parses the format of a layer: a name that `parse_format` knows, or `WEIGHTS/INPUTS` as in `int4/int8`.

    Raises:
      UnknownFormatError: the name is none of these.
    """
    weights, slash, inputs = name.partition("/")
    return format_pair(weights, inputs if slash else weights)


def format_space(space: str | Sequence[str]) -> tuple[LayerFormat, ...]:
    """The formats of a search space.

    Args:
      space: a name in `FORMAT_SPACES` (FLIQS, Table 5), or format names: a sequence, or one text joined by commas.

    Raises:
      UnknownFormatError: a name is neither a space nor a format, or a format is named twice.
    """
    if isinstance(space, str):
        if space not in FORMAT_SPACES and "," not in space:
            raise UnknownFormatError(
                f"unknown format space {space!r}: expected {', '.join(FORMAT_SPACES)}, or formats joined by commas, of "
                "which one alone is no space"
            )
        names = [name.strip() for name in space.split(",")]
        if not all(names):
            raise UnknownFormatError(f"formats {space!r}: expected a name on both sides of each comma")
        space = FORMAT_SPACES.get(space) or names
    if len(set(space)) < len(space):
        raise UnknownFormatError(f"a format named twice: {', '.join(space)}")
    return tuple(parse_layer_format(name) for name in space)


class FormatTable(NamedTuple):
    """K formats as arrays of shape `[K]`, or one of them (a row) as scalars. All leaves may be traced.

    Attributes:
      bits: int32, total bits.
      smallest_exponent: int32.
      mantissa_bits: int32.
      largest: float32.
      lowest: float32.
      scaled: bool.
      clip_multiple: float32, clip threshold in units of the tensor's root mean square (switchable clipping; FLIQS, §3).
    """

    bits: jax.Array
    smallest_exponent: jax.Array
    mantissa_bits: jax.Array
    largest: jax.Array
    lowest: jax.Array
    scaled: jax.Array
    clip_multiple: jax.Array

    def row(self, index: jax.Array | int) -> "FormatTable":
        """The row at `index`, or the rows at an array of indices, int32; it may be traced."""
        return jax.tree.map(lambda column: column[index], self)


def format_table(formats: Sequence[Format], clip_multiples: Sequence[float]) -> FormatTable:
    """The table of K formats and their clip multiples.

    Raises:
      ValueError: `formats` and `clip_multiples` differ in length.
    """
    if len(formats) != len(clip_multiples):
        raise ValueError(f"{len(formats)} formats but {len(clip_multiples)} clip multiples")

    def column(field: str, dtype: type) -> jax.Array:
        return jnp.asarray([getattr(f, field) for f in formats], dtype)

    return FormatTable(
        bits=column("bits", jnp.int32),
        smallest_exponent=column("smallest_exponent", jnp.int32),
        mantissa_bits=column("mantissa_bits", jnp.int32),
        largest=column("largest", jnp.float32),
        lowest=column("lowest", jnp.float32),
        scaled=column("scaled", jnp.bool_),
        clip_multiple=jnp.asarray(clip_multiples, jnp.float32),
    )
