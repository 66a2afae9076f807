import io

import numpy as np
import pytest
from PIL import Image

from launch.data.augmentation import Region, central_region, region_resized, whole
from launch.data.contract import DataError
from launch.data.decoding import UnreadableError, find_decoder, pillow

SIZE = (24, 32)
COLOURS = np.random.default_rng(0).integers(0, 256, (3, 4, 3), dtype=np.uint8)
PICTURE = Image.fromarray(COLOURS).resize((64, 48), Image.Resampling.BICUBIC)


def file(picture=PICTURE, kind="JPEG", **settings):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **settings)
    return buffer.getvalue()


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return file(exif=exif)


JPEG = file(quality=95)
READ = {
    "greyscale": file(PICTURE.convert("L")),
    "CMYK": file(PICTURE.convert("CMYK"), quality=95),
    "RGBA": file(PICTURE.convert("RGBA"), "PNG"),
    "PNG": file(kind="PNG"),
    "palette": file(PICTURE.convert("P"), "PNG"),
    "orientation": turned(),
}


def decoders():
    yield pillow
    try:
        yield find_decoder("simplejpeg")
    except DataError:
        return


def all_of(image):
    return whole(image, SIZE)


@pytest.mark.parametrize("decode", [*decoders()])
@pytest.mark.parametrize("kind", READ)
def test_all_kinds_of_images_are_read(kind, decode):
    picture = PICTURE.convert("L").convert("RGB") if kind == "greyscale" else PICTURE
    found = decode(READ[kind], all_of, SIZE, 3)
    assert (found.shape, found.dtype) == ((*SIZE, 3), np.uint8)
    expected = region_resized(np.asarray(picture), all_of((48, 64)), SIZE).astype(int)
    assert np.abs(found - expected).mean() < (25 if kind == "palette" else 6)


@pytest.mark.parametrize("decode", [*decoders()])
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (b"", "cannot identify image file"),
        (JPEG[: len(JPEG) // 2], "truncated"),
        (b"\x00" * 500, "cannot identify image file"),
        (file(Image.fromarray(np.zeros((9, 9), np.uint16)), "PNG"), "mode I;16: expected 8 bits per channel"),
    ],
)
def test_what_is_no_whole_image_is_refused(bad, message, decode):
    with pytest.raises(UnreadableError, match=message):
        decode(bad, all_of, SIZE, 3)


def test_regions_are_cut_out_before_they_are_resized():
    region = Region(5, 9, 30, 41)
    expected = region_resized(np.asarray(Image.open(io.BytesIO(JPEG))), region, SIZE)
    np.testing.assert_array_equal(pillow(JPEG, lambda size: region if size == (48, 64) else None, SIZE, 3), expected)
    for channels, mode in ((1, "L"), (4, "RGBA")):
        found = pillow(JPEG, lambda _: region, SIZE, channels)
        picture = np.asarray(Image.open(io.BytesIO(JPEG)).convert(mode)).reshape(48, 64, channels)
        np.testing.assert_array_equal(found, region_resized(picture, region, SIZE))


def test_simplejpeg_is_near_to_pillow():
    """On a smooth image, whole, in parts, and decoded at a half of its size."""
    decode = next(iter([d for d in decoders() if d is not pillow]), None)
    if decode is None:
        pytest.skip("needs requirements-images.txt")
    large = file(PICTURE.resize((320, 240), Image.Resampling.BICUBIC), quality=95)
    for region_of in (all_of, lambda size: central_region(size, SIZE), lambda _: Region(3, 8, 31, 20)):
        for data in (JPEG, large):
            found, expected = (d(data, region_of, SIZE, 3).astype(int) for d in (decode, pillow))
            assert np.abs(found - expected).mean() < 1.5


def test_decoders_that_there_are_not_are_refused(monkeypatch):
    with pytest.raises(DataError, match=r"data.decoder='dali': expected one of pillow, simplejpeg"):
        find_decoder("dali")
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    from launch.data import decoding

    decoding._libraries.cache_clear()
    with pytest.raises(DataError, match=r"data.decoder='simplejpeg' needs cv2: pip install -r requirements-images.txt"):
        find_decoder("simplejpeg")
