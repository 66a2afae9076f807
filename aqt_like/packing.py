"""Packing: quantised tensors as dense bit streams of codes, with their scales.

A code is a sign bit above a magnitude code, the index of the magnitude in `Format.magnitudes` (for floats, the exponent
and fraction bits); unsigned formats have no sign bit. Integers are stored in the same way, which preserves −0. bf16 and
fp32 are stored as they are. Codes are packed without gaps, least significant bit first: two int4 codes in a byte, eight
int5 codes in five bytes. In files, scales that are powers of two, as in the MX formats, take one byte each.
"""

import math
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from aqt_like import numerics, tensor_file
from aqt_like.formats import Format, parse_format
from aqt_like.granularity import BLOCK_FORMATS, Blocks, block_clip
from aqt_like.tensor_file import DamagedFileError

KIND, VERSION = "file of packed tensors", 3


class Packed(NamedTuple):
    """A quantised tensor: values of a format · 2^exponent · scale.

    Attributes:
      codes: uint8[⌈size · bits / 8⌉], the bit stream; the last byte is padded with zeros.
      scale: float32; broadcasts against `shape`, or has one value per block.
      format: name of the format.
      shape: shape of the tensor.
      blocks: the blocks that share a scale, if any.
      exponent: a power of two beside the scale, which keeps the scales of formats with wide exponents in range.
    """

    codes: np.ndarray
    scale: np.ndarray
    format: str
    shape: tuple[int, ...]
    blocks: Blocks | None = None
    exponent: int = 0


def pack(
    x: jax.typing.ArrayLike, fmt: str, *, clip: jax.typing.ArrayLike | None = None, blocks: Blocks | None = None
) -> Packed:
    """Quantises and packs a tensor; `unpack` returns the result of `numerics.quantize`, bit for bit.

    Args:
      x: float32, any shape.
      fmt: name of a format, or one of `granularity.BLOCK_FORMATS`: blocks along the last axis.
      clip: clip threshold, as in `numerics.quantize`; with `blocks`, one value per block.
      blocks: the blocks that share a scale, if any.

    Raises:
      UnknownFormatError: `fmt` is no number format.
      ValueError: `x` contains NaN, or `blocks` are without `clip`.
    """
    x = jnp.asarray(x, jnp.float32)
    if fmt in BLOCK_FORMATS:
        blocks, clip = block_clip(x, fmt)
        fmt = BLOCK_FORMATS[fmt].element
    if blocks is None:
        values, scale = numerics.quantize_to_grid(x, fmt, clip=clip)
    elif clip is None:
        raise ValueError("blocks need a clip: one value for each")
    else:
        values, scale = numerics.quantize_to_grid(x, fmt, clip=blocks.spread(jnp.asarray(clip), x.shape))
        scale = blocks.gather(scale)
    return pack_values(np.asarray(values), np.asarray(scale), fmt, blocks=blocks)


def pack_values(
    values: np.ndarray, scale: np.ndarray, fmt: str, *, blocks: Blocks | None = None, exponent: int = 0
) -> Packed:
    """Packs a tensor that is quantised already; `unpack_values` returns `values`, bit for bit.

    Args:
      values: float32, any shape: values of the format · 2^exponent.
      scale: see `Packed`.
      fmt: name of the format.
      blocks, exponent: see `Packed`.

    Raises:
      UnknownFormatError: `fmt` is no number format.
      ValueError: a value is NaN or none of the format.
    """
    parsed = parse_format(fmt)
    values = np.asarray(values, np.float32)
    codes = _raw(values, parsed) if not parsed.scaled else _codes(values * np.float32(2.0**-exponent), parsed)
    bits = np.unpackbits(codes.astype("<u4")[:, None].view(np.uint8), axis=1, count=parsed.bits, bitorder="little")
    packed = np.packbits(bits, bitorder="little")
    return Packed(packed, np.asarray(scale, np.float32), parsed.name, values.shape, blocks, exponent)


def _raw(values: np.ndarray, fmt: Format) -> np.ndarray:
    """The bits of values of bf16 or fp32, uint32[N]."""
    bits = np.ascontiguousarray(values).ravel().view(np.uint32)
    if np.isnan(values).any() or (bits << fmt.bits & 0xFFFFFFFF if fmt.bits < 32 else bits * 0).any():
        raise ValueError(f"some values are not of {fmt.name}")
    return bits >> (32 - fmt.bits)


def _codes(values: np.ndarray, fmt: Format) -> np.ndarray:
    """The codes of values of a scaled format, uint32[N]."""
    values = values.ravel()
    magnitudes = fmt.magnitudes().astype(np.float32)
    found = np.minimum(np.searchsorted(magnitudes, np.abs(values)), len(magnitudes) - 1)
    if wrong := np.count_nonzero(magnitudes[found] != np.abs(values)):
        raise ValueError(
            f"{wrong} of {values.size} values are not of {fmt.name}, {np.count_nonzero(np.isnan(values))} of them NaN"
        )
    if fmt.lowest == 0:
        if wrong := np.count_nonzero(values < 0):
            raise ValueError(f"{wrong} of {values.size} values are negative, which {fmt.name} has no code for")
        return found.astype(np.uint32)
    return found.astype(np.uint32) | np.signbit(values).astype(np.uint32) << np.uint32(fmt.bits - 1)


def unpack_values(packed: Packed) -> np.ndarray:
    """The values of a packed tensor before they are scaled: values of the format · 2^exponent, float32 of its shape."""
    fmt = parse_format(packed.format)
    size = math.prod(packed.shape)
    bits = np.unpackbits(packed.codes, count=size * fmt.bits, bitorder="little").reshape(size, fmt.bits)
    whole = np.zeros((size, 4), np.uint8)
    whole[:, : -(-fmt.bits // 8)] = np.packbits(bits, axis=1, bitorder="little")
    codes = whole.view("<u4")[:, 0]
    if not fmt.scaled:
        return (codes << np.uint32(32 - fmt.bits)).view(np.float32).reshape(packed.shape)
    magnitudes = fmt.magnitudes().astype(np.float32)
    if fmt.lowest == 0:
        values = magnitudes[codes]
    else:
        sign_bit = np.uint32(1 << (fmt.bits - 1))
        signs = np.where(codes & sign_bit, np.float32(-1), np.float32(1))
        values = np.copysign(magnitudes[codes & (sign_bit - np.uint32(1))], signs)
    return (values * np.float32(2.0**packed.exponent)).reshape(packed.shape)


def spread_scale(packed: Packed) -> np.ndarray:
    """The scale of a packed tensor, such that it broadcasts against its shape: float32."""
    if packed.blocks is None:
        return packed.scale
    return np.asarray(packed.blocks.spread(jnp.asarray(packed.scale), packed.shape))


def unpack(packed: Packed) -> np.ndarray:
    """The values of a packed tensor, dequantised: float32 of its shape."""
    if not parse_format(packed.format).scaled:
        return unpack_values(packed)
    # Not in NumPy, which keeps the subnormal products that XLA may flush to zero.
    return np.array(jnp.asarray(unpack_values(packed)) * spread_scale(packed))


def to_arrays(tensors: Mapping[str, Packed]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Packed tensors as arrays by name, `NAME` and `NAME.scale` each, and what else JSON has to say about each tensor.

    Scales are float32; or uint8, exponent plus 127 (E8M0), if all scales of the tensor are powers of two.

    Raises:
      ValueError: the name of a tensor equals `NAME.scale` of another.
    """
    arrays: dict[str, np.ndarray] = {}
    for name, packed in tensors.items():
        arrays |= {name: packed.codes, _scale_name(name): _compact_scale(packed.scale)}
    if len(arrays) < 2 * len(tensors):
        raise ValueError(f"tensor names that collide with another's scale: {sorted(tensors)}")
    entries = {
        name: {
            "format": packed.format,
            "shape": list(packed.shape),
            "blocks": packed.blocks,
            "exponent": packed.exponent,
        }
        for name, packed in tensors.items()
    }
    return arrays, entries


def from_arrays(arrays: Mapping[str, np.ndarray], entries: Mapping[str, Any]) -> dict[str, Packed]:
    """The packed tensors by name, from what `to_arrays` returned."""

    def scale(name: str) -> np.ndarray:
        stored = arrays[_scale_name(name)]
        return stored.view(ml_dtypes.float8_e8m0fnu).astype(np.float32) if stored.dtype == np.uint8 else stored

    return {
        name: Packed(
            arrays[name],
            scale(name),
            entry["format"],
            tuple(entry["shape"]),
            entry["blocks"] and Blocks(*entry["blocks"]),
            entry["exponent"],
        )
        for name, entry in entries.items()
    }


def save(path: pathlib.Path, tensors: Mapping[str, Packed]) -> None:
    """Writes tensors by name to a tensor file, atomically; see `to_arrays` for its contents and errors."""
    arrays, entries = to_arrays(tensors)
    tensor_file.save(path, arrays, {"kind": KIND, "version": VERSION, "tensors": entries})


def load(path: pathlib.Path) -> dict[str, Packed]:
    """Reads the tensors of a file that `save` wrote, by name.

    Raises:
      DamagedFileError: the file is truncated, altered, of another version, or not written by `save`.
    """
    arrays, manifest = tensor_file.load(path, kind=KIND, version=VERSION)
    return from_arrays(arrays, manifest["tensors"])


def _scale_name(name: str) -> str:
    return f"{name}.scale"


def _compact_scale(scale: np.ndarray) -> np.ndarray:
    """The scales as E8M0 in uint8 if this is exact, else unchanged."""
    exponents = scale.astype(ml_dtypes.float8_e8m0fnu)
    return exponents.view(np.uint8) if np.array_equal(exponents.astype(np.float32), scale) else scale


__all__ = [
    "DamagedFileError",
    "Packed",
    "from_arrays",
    "load",
    "pack",
    "pack_values",
    "save",
    "spread_scale",
    "to_arrays",
    "unpack",
    "unpack_values",
]
