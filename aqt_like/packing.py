"""Quantised tensors as they are stored: a dense stream of codes, a scale, and a file that is refused where damaged.

A code is sign and magnitude: the position of the magnitude among the format's (`Format.magnitudes`), which for floats
are the exponent and fraction bits themselves, with the sign above it; unsigned formats have no sign bit. Integers are
stored the same way, so that −0 survives. Codes follow one another without gaps, least significant bit first: two of
int4 in a byte, eight of int5 in five bytes. Scales that are powers of two, as in the MX formats, take a byte each.
"""

import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import safetensors
from safetensors.numpy import save_file

from aqt_like import numerics
from aqt_like.formats import format_table, parse_format
from aqt_like.granularity import BLOCK_FORMATS, Blocks, block_clip

VERSION = 2
_MANIFEST = "aqt_like"


class DamagedFileError(ValueError):
    """A file that is not what `save` wrote; the message says why."""


class Packed(NamedTuple):
    """A tensor under a format of at most 8 bits.

    Attributes:
      codes: uint8[⌈size · bits / 8⌉], the bit stream; the last byte is filled up with zeros.
      scale: float32, what one unit of the format stands for; broadcasts against `shape`, or is one per block.
      format: name of the format.
      shape: of the tensor.
      blocks: the blocks that share a scale, if any.
    """

    codes: np.ndarray
    scale: np.ndarray
    format: str
    shape: tuple[int, ...]
    blocks: Blocks | None = None


def pack(
    x: jax.typing.ArrayLike, fmt: str, *, clip: jax.typing.ArrayLike | None = None, blocks: Blocks | None = None
) -> Packed:
    """Quantises and packs; arguments as in `numerics.quantize`, whose result `unpack` gives back bit for bit.

    With `blocks`, `clip` has one value per block. `fmt` may also be one of `granularity.BLOCK_FORMATS`, which says
    both; its blocks lie along the last axis.

    Raises:
      UnknownFormatError: no such format.
      ValueError: a format of more than 8 bits, or a NaN in `x`.
    """
    x = jnp.asarray(x, jnp.float32)
    if fmt in BLOCK_FORMATS:
        blocks, clip = block_clip(x, fmt)
        fmt = BLOCK_FORMATS[fmt].element
    parsed = parse_format(fmt)
    if parsed.bits > 8:
        raise ValueError(f"{fmt} has {parsed.bits} bits: formats of at most 8 bits are packed")
    if blocks is None:
        values, scale = numerics.quantize_to_grid(x, fmt, clip=clip)
    elif clip is None:
        raise ValueError("blocks need a clip: one value for each")
    else:
        values, _ = numerics.quantize_to_grid(x, fmt, clip=blocks.spread(jnp.asarray(clip), x.shape))
        scale = numerics.scale_for(format_table([parsed], [1.0]).row(0), jnp.asarray(clip, jnp.float32))
    values, scale = np.asarray(values), np.asarray(scale)
    if np.isnan(values).any():
        raise ValueError(f"{np.isnan(values).sum()} of {values.size} values are NaN, which {fmt} has no code for")
    codes = np.searchsorted(parsed.magnitudes(), np.abs(values.ravel())).astype(np.uint8)
    if parsed.lowest < 0:
        codes |= np.signbit(values.ravel()).astype(np.uint8) << (parsed.bits - 1)
    bits = np.unpackbits(codes[:, None], axis=1, count=parsed.bits, bitorder="little")
    return Packed(np.packbits(bits, bitorder="little"), scale, parsed.name, values.shape, blocks)


def unpack(packed: Packed) -> np.ndarray:
    """The float32 values of a packed tensor."""
    fmt = parse_format(packed.format)
    size = int(np.prod(packed.shape))
    bits = np.unpackbits(packed.codes, count=size * fmt.bits, bitorder="little").reshape(size, fmt.bits)
    codes = np.packbits(bits, axis=1, bitorder="little")[:, 0] if size else np.zeros(0, np.uint8)
    magnitudes = fmt.magnitudes().astype(np.float32)
    scale = packed.scale
    if packed.blocks is not None:
        scale = np.asarray(packed.blocks.spread(jnp.asarray(scale), packed.shape))
    if fmt.lowest == 0:
        return magnitudes[codes].reshape(packed.shape) * scale
    sign_bit = 1 << (fmt.bits - 1)
    values = np.copysign(magnitudes[codes & (sign_bit - 1)], np.where(codes & sign_bit, np.float32(-1), np.float32(1)))
    return values.reshape(packed.shape) * scale


def save(path: pathlib.Path, tensors: Mapping[str, Packed]) -> None:
    """Writes tensors by name as a safetensors file, atomically: `NAME` and `NAME.scale` each, with a JSON manifest.

    The manifest, under "aqt_like" in the file's metadata, gives the version, and each tensor's format, shape, blocks
    (size and axis) and SHA-256 over codes and scale. A scale is float32, or uint8 where all are powers of two: their
    exponents plus 127 (E8M0).
    """
    arrays: dict[str, np.ndarray] = {}
    entries = {}
    for name, packed in tensors.items():
        arrays |= {name: packed.codes, _scale_of(name): _shortest(packed.scale)}
        entries[name] = {
            "format": packed.format,
            "shape": list(packed.shape),
            "blocks": packed.blocks,
            "sha256": _digest(packed),
        }
    if len(arrays) < 2 * len(tensors):
        raise ValueError(f"tensor names that collide with another's scale: {sorted(tensors)}")
    temporary = path.with_name(f"{path.name}.tmp")
    save_file(arrays, temporary, {_MANIFEST: json.dumps({"version": VERSION, "tensors": entries})})
    temporary.rename(path)


def load(path: pathlib.Path) -> dict[str, Packed]:
    """Reads what `save` wrote.

    Raises:
      DamagedFileError: truncated, tampered with, of another version, or never written by `save`.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            manifest = json.loads((file.metadata() or {})[_MANIFEST])
            if manifest["version"] != VERSION:
                raise DamagedFileError(f"{path}: version {manifest['version']}, expected {VERSION}")
            return {name: _checked(file, name, entry) for name, entry in manifest["tensors"].items()}
    except DamagedFileError:
        raise
    except (safetensors.SafetensorError, LookupError, TypeError, AttributeError, ValueError) as error:
        raise DamagedFileError(f"{path} is truncated, or no file of packed tensors: {error!r}") from error


def _checked(file: Any, name: str, entry: Mapping[str, Any]) -> Packed:
    scale = file.get_tensor(_scale_of(name))
    if scale.dtype == np.uint8:
        scale = scale.view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
    blocks = entry["blocks"] and Blocks(*entry["blocks"])
    packed = Packed(file.get_tensor(name), scale, entry["format"], tuple(entry["shape"]), blocks)
    if _digest(packed) != entry["sha256"]:
        raise DamagedFileError(f"{name} is not as it was written")
    return packed


def _scale_of(name: str) -> str:
    return f"{name}.scale"


def _shortest(scale: np.ndarray) -> np.ndarray:
    """The scale as bytes of E8M0 where that loses nothing."""
    exponents = scale.astype(ml_dtypes.float8_e8m0fnu)
    return exponents.view(np.uint8) if np.array_equal(exponents.astype(np.float32), scale) else scale


def _digest(packed: Packed) -> str:
    header = json.dumps([packed.format, list(packed.shape), list(packed.scale.shape), packed.blocks]).encode()
    scale = np.ascontiguousarray(packed.scale, np.float32).tobytes()
    return hashlib.sha256(header + packed.codes.tobytes() + scale).hexdigest()
