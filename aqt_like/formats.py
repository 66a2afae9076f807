"""Number formats: what each can represent, and the arrays that hand one to a jitted step.

A `Format` is a name and five numbers. A `FormatTable` stacks formats into arrays, so that a format is chosen by an
index which may be traced: one compiled step serves every format.

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
      bits: total storage bits; what bit operations count.
      smallest_exponent: exponent of the smallest normal number; below it the step no longer shrinks.
      mantissa_bits: stored fraction bits.
      largest: largest representable value; larger inputs saturate.
      lowest: smallest representable value: −largest, or 0 for unsigned formats.
      scaled: whether a tensor is scaled so that its clip threshold meets `largest`. bf16 and fp32 are used as they are.
    """

    name: str
    bits: int
    smallest_exponent: int
    mantissa_bits: int
    largest: float
    lowest: float
    scaled: bool

    def magnitudes(self) -> np.ndarray:
        """All values from 0 up, ascending, float64; the codes of a signed format stand for these and their negatives.

        Raises:
          ValueError: fp32, which has too many.
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
        """Whether all steps between its values are alike."""
        return self.name.removeprefix("u").startswith("int")

    @property
    def unsigned_twin(self) -> "Format":
        """The unsigned integer of the same number of bits; a float format, having no such twin, is its own."""
        return parse_format("u" + self.name) if self.name.startswith("int") else self

    @property
    def weights(self) -> "Format":
        """Itself: as a layer's format it holds for weights and input alike."""
        return self

    @property
    def inputs(self) -> "Format":
        """Itself, as `weights`."""
        return self


@dataclasses.dataclass(frozen=True)
class FormatPair:
    """A layer's format where weights and input differ, named `int4/int8`."""

    weights: Format
    inputs: Format

    @property
    def name(self) -> str:
        """Both names, that of the weights first."""
        return f"{self.weights.name}/{self.inputs.name}"

    @property
    def bits(self) -> int:
        """Of the wider one."""
        return max(self.weights.bits, self.inputs.bits)

    @property
    def is_integer(self) -> bool:
        """Whether both are integers."""
        return self.weights.is_integer and self.inputs.is_integer


LayerFormat = Format | FormatPair


class UnknownFormatError(ValueError):
    """A name that is no number format."""


@functools.cache
def parse_format(name: str) -> Format:
    """Parses `int2`…`int16`, `uint2`…`uint16`, `eXmY` (sign, X exponent bits, Y mantissa bits), `bf16` or `fp32`.

    `eXmY` has subnormals, no infinities and no NaN codes, and an exponent bias of 2^(X−1) − 1 (FLIQS, A.5). Hardware
    reserves codes: `eXmYfn` lacks the largest magnitude (NaN's code; e4m3fn reaches 448 where e4m3 reaches 480), and
    `eXmYieee` all magnitudes of the largest exponent (infinity and NaNs; e5m2ieee reaches 57,344). `intN` is symmetric:
    int4 means −7…7.

    Raises:
      UnknownFormatError: the name is none of these.
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
    if match := re.fullmatch(r"e([1-7])m(\d)(fn|ieee)?", name):
        exponent_bits, mantissa_bits, reserved = int(match[1]), int(match[2]), match[3]
        bias = 2 ** (exponent_bits - 1) - 1
        # Codes of magnitudes in ascending order: all of them, all but the last one, or all but the last exponent's.
        last = 2 ** (exponent_bits + mantissa_bits) - 1 - {None: 0, "fn": 1, "ieee": 2**mantissa_bits}[reserved]
        exponent, fraction = divmod(last, 2**mantissa_bits)
        if exponent > 0:
            largest = (1 + fraction / 2**mantissa_bits) * 2.0 ** (exponent - bias)
            return Format(name, 1 + exponent_bits + mantissa_bits, 1 - bias, mantissa_bits, largest, -largest, True)
    if re.fullmatch(r"e8m\d", name):
        raise UnknownFormatError(
            f"unknown number format {name!r}: its largest value, 2^128 or more, is no float32; exponents of 8 bits "
            "serve as shared scales (granularity.power_of_two)"
        )
    raise UnknownFormatError(
        f"unknown number format {name!r}: expected int2…int16, uint2…uint16, eXmY with 1 ≤ X ≤ 7 and one digit Y (or "
        "eXmYfn, eXmYieee), bf16 or fp32"
    )


def format_pair(weights: str, inputs: str) -> LayerFormat:
    """A layer's format from those of its weights and of its input; where they are the same, that format."""
    return parse_format(weights) if weights == inputs else FormatPair(parse_format(weights), parse_format(inputs))


def parse_layer_format(name: str) -> LayerFormat:
    """A layer's format: one that `parse_format` knows, or `WEIGHTS/INPUTS`, as in `int4/int8`.

    Raises:
      UnknownFormatError: the name is none of these.
    """
    weights, slash, inputs = name.partition("/")
    return format_pair(weights, inputs if slash else weights)


def format_space(space: str | Sequence[str]) -> tuple[LayerFormat, ...]:
    """The formats of a search space, given by its name (FLIQS, Table 5) or as format names, joined by commas or not.

    Raises:
      UnknownFormatError: a name that is neither a space nor a format, or a format named twice.
    """
    if isinstance(space, str):
        if space not in FORMAT_SPACES and "," not in space:
            raise UnknownFormatError(
                f"unknown format space {space!r}: expected {', '.join(FORMAT_SPACES)}, or formats joined by commas"
            )
        space = FORMAT_SPACES.get(space) or [name.strip() for name in space.split(",") if name.strip()]
    if len(set(space)) < len(space):
        raise UnknownFormatError(f"a format named twice: {', '.join(space)}")
    return tuple(parse_layer_format(name) for name in space)


class FormatTable(NamedTuple):
    """Formats as arrays of shape `[K]`, or one format's row as scalars. All leaves may be traced.

    Attributes:
      bits: int32, total bits.
      smallest_exponent: int32.
      mantissa_bits: int32.
      largest: float32.
      lowest: float32.
      scaled: bool.
      clip_multiple: float32, clip threshold in units of the tensor's root mean square (switchable clipping, FLIQS §3).
    """

    bits: jax.Array
    smallest_exponent: jax.Array
    mantissa_bits: jax.Array
    largest: jax.Array
    lowest: jax.Array
    scaled: jax.Array
    clip_multiple: jax.Array

    def row(self, index: jax.Array | int) -> "FormatTable":
        """The row (or, for an index array, the rows) at `index`, which may be traced."""
        return jax.tree.map(lambda column: column[index], self)


def format_table(formats: Sequence[Format], clip_multiples: Sequence[float]) -> FormatTable:
    """Stacks `formats` into a table of shape `[K]`; `clip_multiples` has one entry per format."""
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
