"""Storage of quantised tensors: a dense bit stream of codes, scales, and a file whose damage is detected.

A code is a sign bit above a magnitude code, the index of the magnitude in `Format.magnitudes` (for floats, the exponent
and fraction bits); unsigned formats have no sign bit. Integers are stored in the same way, which preserves −0. Codes
are packed without gaps, least significant bit first: two int4 codes in a byte, eight int5 codes in five bytes. Scales
that are powers of two, as in the MX formats, take one byte each.
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
from aqt_like.formats import parse_format
from aqt_like.granularity import BLOCK_FORMATS, Blocks, block_clip

VERSION = 2
_MANIFEST = "aqt_like"


class DamagedFileError(ValueError):
    """Raised for a file that is not as `save` wrote it; the message gives the reason."""


class Packed(NamedTuple):
    """A tensor quantised to a format of at most 8 bits.

    Attributes:
      codes: uint8[⌈size · bits / 8⌉], the bit stream; the last byte is padded with zeros.
      scale: float32, value of one unit of the format; broadcasts against `shape`, or has one value per block.
      format: name of the format.
      shape: shape of the tensor.
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
    """Quantises and packs a tensor; `unpack` returns the result of `numerics.quantize`, bit for bit.

    Args:
      x: float32, any shape.
      fmt: name of a format of at most 8 bits, or one of `granularity.BLOCK_FORMATS`: blocks along the last axis.
      clip: clip threshold, as in `numerics.quantize`; with `blocks`, one value per block.
      blocks: the blocks that share a scale, if any.

    Raises:
      UnknownFormatError: `fmt` is no number format.
      ValueError: the format has more than 8 bits, `x` contains NaN, or `blocks` are without `clip`.
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
        values, scale = numerics.quantize_to_grid(x, fmt, clip=blocks.spread(jnp.asarray(clip), x.shape))
        scale = blocks.gather(scale)
    values, scale = np.asarray(values), np.asarray(scale)
    if np.isnan(values).any():
        raise ValueError(f"{np.isnan(values).sum()} of {values.size} values are NaN, which {fmt} has no code for")
    codes = np.searchsorted(parsed.magnitudes(), np.abs(values.ravel())).astype(np.uint8)
    if parsed.lowest < 0:
        codes |= np.signbit(values.ravel()).astype(np.uint8) << (parsed.bits - 1)
    bits = np.unpackbits(codes[:, None], axis=1, count=parsed.bits, bitorder="little")
    return Packed(np.packbits(bits, bitorder="little"), scale, parsed.name, values.shape, blocks)


def unpack(packed: Packed) -> np.ndarray:
    """The values of a packed tensor, dequantised: float32 of its shape."""
    fmt = parse_format(packed.format)
    size = int(np.prod(packed.shape))
    bits = np.unpackbits(packed.codes, count=size * fmt.bits, bitorder="little").reshape(size, fmt.bits)
    codes = np.packbits(bits, axis=1, bitorder="little")[:, 0] if size else np.zeros(0, np.uint8)
    magnitudes = fmt.magnitudes().astype(np.float32)
    scale = jnp.asarray(packed.scale)
    if packed.blocks is not None:
        scale = packed.blocks.spread(scale, packed.shape)
    if fmt.lowest == 0:
        values = magnitudes[codes]
    else:
        sign_bit = 1 << (fmt.bits - 1)
        signs = np.where(codes & sign_bit, np.float32(-1), np.float32(1))
        values = np.copysign(magnitudes[codes & (sign_bit - 1)], signs)
    # Not in NumPy, which keeps the subnormal products that XLA may flush to zero.
    return np.array(jnp.asarray(values.reshape(packed.shape)) * scale)


def save(path: pathlib.Path, tensors: Mapping[str, Packed]) -> None:
    """Writes tensors by name to a safetensors file, atomically: `NAME` and `NAME.scale` each, and a JSON manifest.

    The manifest, "aqt_like" in the metadata of the file, holds the version, and of each tensor its format, shape,
    blocks (size and axis) and a SHA-256 of codes and scale. Scales are float32; or uint8, exponent plus 127 (E8M0), if
    all scales of the tensor are powers of two.

    Raises:
      ValueError: the name of a tensor equals `NAME.scale` of another.
    """
    arrays: dict[str, np.ndarray] = {}
    entries = {}
    for name, packed in tensors.items():
        arrays |= {name: packed.codes, _scale_name(name): _compact_scale(packed.scale)}
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
    """Reads the tensors of a file that `save` wrote, by name.

    Raises:
      DamagedFileError: the file is truncated, altered, of another version, or not written by `save`.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            manifest = json.loads((file.metadata() or {})[_MANIFEST])
            if manifest["version"] != VERSION:
                raise DamagedFileError(f"{path}: version {manifest['version']}, expected {VERSION}")
            return {name: _read_tensor(file, name, entry) for name, entry in manifest["tensors"].items()}
    except DamagedFileError:
        raise
    except (safetensors.SafetensorError, LookupError, TypeError, AttributeError, ValueError) as error:
        raise DamagedFileError(f"{path} is truncated, or no file of packed tensors: {error!r}") from error


def _read_tensor(file: Any, name: str, entry: Mapping[str, Any]) -> Packed:
    scale = file.get_tensor(_scale_name(name))
    if scale.dtype == np.uint8:
        scale = scale.view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
    blocks = entry["blocks"] and Blocks(*entry["blocks"])
    packed = Packed(file.get_tensor(name), scale, entry["format"], tuple(entry["shape"]), blocks)
    if _digest(packed) != entry["sha256"]:
        raise DamagedFileError(f"{name} is not as it was written")
    return packed


def _scale_name(name: str) -> str:
    return f"{name}.scale"


def _compact_scale(scale: np.ndarray) -> np.ndarray:
    """The scales as E8M0 in uint8 if this is exact, else unchanged."""
    exponents = scale.astype(ml_dtypes.float8_e8m0fnu)
    return exponents.view(np.uint8) if np.array_equal(exponents.astype(np.float32), scale) else scale


def _digest(packed: Packed) -> str:
    header = json.dumps([packed.format, list(packed.shape), list(packed.scale.shape), packed.blocks]).encode()
    scale = np.ascontiguousarray(packed.scale, np.float32).tobytes()
    return hashlib.sha256(header + packed.codes.tobytes() + scale).hexdigest()
