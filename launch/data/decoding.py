"""Decoding of image files: from the bytes of a record to the pixels of one of its regions, resized."""

import io
from collections.abc import Callable

import numpy as np
import PIL
from PIL import Image

from launch.data.augmentation import Region, Size

RegionOf = Callable[[Size], Region]

Decode = Callable[[bytes, RegionOf, Size, int], np.ndarray]
"""`(file, region_of, size, channels) → uint8[H, W, C]` of a size: decodes a region of an image file, and resizes it."""

_MODES = {1: "L", 3: "RGB"}


class UnreadableError(ValueError):
    """A record is no image that can be read."""


def pillow(file: bytes, region_of: RegionOf, size: Size, channels: int) -> np.ndarray:
    """See `Decode`; greyscale, palettes, CMYK and transparency become `channels`, orientation tags are not heeded.

    Raises:
      UnreadableError: these are no bytes of an image with 8 bits per channel, or not all of them.
    """
    try:
        picture = Image.open(io.BytesIO(file))
        if picture.mode.startswith(("I", "F")):
            raise UnreadableError(f"an image of mode {picture.mode}: expected 8 bits per channel")
        if picture.mode != _MODES[channels]:
            picture = picture.convert(_MODES[channels])
        top, left, rows, columns, resampling = region_of((picture.height, picture.width))
        picture = picture.crop((left, top, left + columns, top + rows))
        if picture.size != size[::-1]:
            picture = picture.resize(size[::-1], resampling)
        return np.asarray(picture).reshape(*size, channels)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # of Pillow's readers
        raise UnreadableError(f"{type(error).__name__}: {error}") from error


DECODERS: dict[str, tuple[Decode, str]] = {"pillow": (pillow, f"Pillow {PIL.__version__}")}
