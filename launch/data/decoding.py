"""Decoding of image files: from the bytes of a record to the pixels of one of its regions, resized."""

import functools
import io
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import PIL
from PIL import Image

from launch.data.augmentation import Region, Size, region_resized
from launch.data.contract import DataError

RegionOf = Callable[[Size], Region]

Decode = Callable[[bytes, RegionOf, Size, int], np.ndarray]
"""`(file, region_of, size, channels) → uint8[H, W, C]` of a size: decodes a region of an image file, and resizes it."""

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


class UnreadableError(ValueError):
    """A record is no image that can be read."""


def pillow(file: bytes, region_of: RegionOf, size: Size, channels: int) -> np.ndarray:
    """See `Decode`; greyscale, palettes, CMYK and transparency become `channels`.

    Orientation tags are not heeded, as in tf.data and torchvision, with which networks are published.

    Raises:
      UnreadableError: these are no bytes of an image with 8 bits per channel, or not all of them.
    """
    try:
        picture: Image.Image = Image.open(io.BytesIO(file))
        if picture.mode.startswith(("I", "F")):
            raise UnreadableError(f"an image of mode {picture.mode}: expected 8 bits per channel")
        picture.load()
        if picture.mode != _MODES[channels]:
            picture = picture.convert(_MODES[channels])
    except Exception as error:  # Pillow's readers of damaged files may raise anything.
        raise UnreadableError(f"{type(error).__name__}: {error}") from error
    region = region_of((picture.height, picture.width))
    if channels == 4:  # Pillow would weigh colours by opacity.
        return region_resized(np.asarray(picture), region, size)
    top, left, rows, columns, resampling = region
    picture = picture.crop((left, top, left + columns, top + rows))
    if picture.size != size[::-1]:
        picture = picture.resize(size[::-1], resampling)
    return np.asarray(picture).reshape(*size, channels)


@functools.cache
def _libraries() -> tuple[Any, Any]:
    import cv2
    import simplejpeg as jpeg

    cv2.setNumThreads(0)  # There are processes enough.
    return cv2, jpeg


class _Scratch(threading.local):
    """Memory of a thread that images are decoded into: the system would clear new pages for each of them."""

    pixels = np.empty(0, np.uint8)


_SCRATCH = _Scratch()


def simplejpeg(file: bytes, region_of: RegionOf, size: Size, channels: int) -> np.ndarray:
    """See `Decode`; colour JPEGs are decoded by simplejpeg and resized by OpenCV, all other files as `pillow` does.

    Where a region is at least four times as large as it shall be, the JPEG is decoded at a half, a quarter or an eighth
    of its size, so that the region is still twice as large. OpenCV averages where it reduces; where it enlarges, it is
    cubic.

    Raises:
      UnreadableError: see `pillow`.
    """
    jpeg, region = _libraries()[1], None
    try:
        height, width, colours, _ = jpeg.decode_jpeg_header(file)
        if channels == 3 and colours in ("YCbCr", "RGB"):
            region = region_of((height, width))
            room = min(region.rows // size[0], region.columns // size[1])
            by = max(n for n in (1, 2, 4, 8) if n <= max(room // 2, 1))
            if _SCRATCH.pixels.size < height * width * 3:
                _SCRATCH.pixels = np.empty(height * width * 3, np.uint8)
            image = jpeg.decode_jpeg(
                file, buffer=_SCRATCH.pixels, min_height=-(-height // by), min_width=-(-width // by), min_factor=by
            )
            return _resized_by_opencv(image, region, (height, width), size)
    except ValueError:
        pass  # Pillow may read more, and says what is wrong.
    return pillow(file, region_of if region is None else lambda _: region, size, channels)


def _resized_by_opencv(image: np.ndarray, region: Region, full: Size, size: Size) -> np.ndarray:
    """A region of an image that was decoded at a part of its full size, resized."""
    cv2, _ = _libraries()
    scales = image.shape[0] / full[0], image.shape[1] / full[1]
    top, left = round(region.top * scales[0]), round(region.left * scales[1])
    rows, columns = max(round(region.rows * scales[0]), 1), max(round(region.columns * scales[1]), 1)
    part = image[top : top + rows, left : left + columns]
    reduces = part.shape[0] >= size[0] and part.shape[1] >= size[1]
    return cv2.resize(part, size[::-1], interpolation=cv2.INTER_AREA if reduces else cv2.INTER_CUBIC)


DECODERS: dict[str, Decode] = {"pillow": pillow, "simplejpeg": simplejpeg}


def find_decoder(name: str) -> Decode:
    """The decoder of a name.

    Raises:
      DataError: there is none, or its libraries are not installed.
    """
    if name not in DECODERS:
        raise DataError(f"data.decoder={name!r}: expected one of {', '.join(DECODERS)}")
    if name == "simplejpeg":
        try:
            _libraries()
        except ImportError as error:
            advice = "pip install -r requirements-images.txt"
            raise DataError(f"data.decoder={name!r} needs {error.name}: {advice}") from error
    return DECODERS[name]


def versions(decode: Decode) -> str:
    """Names and versions of the libraries of a decoder."""
    own = f"Pillow {PIL.__version__}"
    if decode is pillow:
        return own
    cv2, jpeg = _libraries()
    return f"simplejpeg {jpeg.__version__}, OpenCV {cv2.__version__}, {own}"
