"""Augmentation of training images, uint8, on the host: which region is seen, and how it is distorted."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

Rng = np.random.Generator
Size = tuple[int, int]
CUBIC, AVERAGE = Image.Resampling.BICUBIC, Image.Resampling.BOX


class Region(NamedTuple):
    """A rectangle of an image in pixels, and the filter by which it is resized."""

    top: int
    left: int
    rows: int
    columns: int
    resampling: Image.Resampling = CUBIC


class Augmentation(NamedTuple):
    """Augmentation of training images.

    Attributes:
      crop: `(size of the image, rng) → region` that is resized to the size of inputs; None to resize images instead.
      distort: `(images, rng) → images` on a batch, uint8[B, H, W, C].
    """

    crop: Callable[[Size, Rng], Region] | None
    distort: Callable[[np.ndarray, Rng], np.ndarray]


def resized(image: np.ndarray, size: Size, resampling: Image.Resampling = AVERAGE) -> np.ndarray:
    """Image, uint8[H, W, C], resized to `size`; by default, integer reduction factors average pixels."""
    if image.shape[:2] == size:
        return image
    if image.shape[-1] == 3:
        return np.asarray(Image.fromarray(image).resize(size[::-1], resampling))
    channels = [Image.fromarray(image[..., c]).resize(size[::-1], resampling) for c in range(image.shape[-1])]
    return np.stack([np.asarray(channel) for channel in channels], -1)


def region_resized(image: np.ndarray, region: Region, size: Size) -> np.ndarray:
    """A region of an image, uint8[H, W, C], resized to `size`."""
    top, left, rows, columns, resampling = region
    return resized(image[top : top + rows, left : left + columns], size, resampling)


def whole(image: Size, size: Size) -> Region:
    """All of an image."""
    del size
    return Region(0, 0, *image, AVERAGE)


def central_region(image: Size, size: Size) -> Region:
    """The middle of an image, 7/8 of its shorter side, in the shape of `size` (Szegedy et al., 2015)."""
    scale = min(image[0] / size[0], image[1] / size[1]) * 0.875
    rows, columns = (max(round(scale * side), 1) for side in size)
    return Region((image[0] - rows) // 2, (image[1] - columns) // 2, rows, columns)


def random_region(image: Size, rng: Rng) -> Region:
    """Random region of 8 to 100 % of the area, aspect ratio 3:4 to 4:3 (Szegedy et al., 2015).

    Where ten draws do not fit, it is the largest in the middle whose aspect ratio is in that range, as in torchvision.
    """
    height, width = image
    for _ in range(10):
        area = height * width * rng.uniform(0.08, 1.0)
        shape = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        rows, columns = round(np.sqrt(area / shape)), round(np.sqrt(area * shape))
        if 0 < rows <= height and 0 < columns <= width:
            return Region(int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1)), rows, columns)
    rows = min(height, max(round(width / (3 / 4)), 1))
    columns = min(width, max(round(height * (4 / 3)), 1))
    return Region((height - rows) // 2, (width - columns) // 2, rows, columns)


def crop_flip(images: np.ndarray, rng: Rng) -> np.ndarray:
    """Images, uint8[B, H, W, C], shifted by up to an eighth of their side, and mirrored at random."""
    margin = images.shape[1] // 8
    padded = np.pad(images, ((0, 0), (margin, margin), (margin, margin), (0, 0)), mode="reflect")
    batch, height, width, _ = images.shape
    row = rng.integers(0, 2 * margin + 1, batch)[:, None] + np.arange(height)
    column = rng.integers(0, 2 * margin + 1, batch)[:, None] + np.arange(width)
    column = np.where(rng.integers(0, 2, batch)[:, None] == 1, column[:, ::-1], column)
    return padded[np.arange(batch)[:, None, None], row[:, :, None], column[:, None, :]]


def flip(images: np.ndarray, rng: Rng) -> np.ndarray:
    """Images, uint8[B, H, W, C], mirrored at random; a view of them where all or none are."""
    mirrored = rng.integers(0, 2, len(images)) == 1
    if mirrored.all():
        return images[:, :, ::-1]
    return np.where(mirrored[:, None, None, None], images[:, :, ::-1], images) if mirrored.any() else images


def _affine(*coefficients: float) -> Callable[[Image.Image], Image.Image]:
    return lambda image: image.transform(
        image.size, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR, fillcolor=(128,) * 3
    )


# Operations of AutoAugment (Cubuk et al., 2019, Table 6). Strengths of signed ones are -1…1, of unsigned ones 0…1.
_SIGNED_OPERATIONS: tuple[Callable[[Image.Image, float], Image.Image], ...] = (
    lambda image, s: _affine(1, 0.3 * s, 0, 0, 1, 0)(image),
    lambda image, s: _affine(1, 0, 0, 0.3 * s, 1, 0)(image),
    lambda image, s: _affine(1, 0, 0.45 * s * image.width, 0, 1, 0)(image),
    lambda image, s: _affine(1, 0, 0, 0, 1, 0.45 * s * image.height)(image),
    lambda image, s: image.rotate(30 * s, Image.Resampling.BILINEAR, fillcolor=(128,) * 3),
    lambda image, s: ImageEnhance.Color(image).enhance(1 + 0.9 * s),
    lambda image, s: ImageEnhance.Contrast(image).enhance(1 + 0.9 * s),
    lambda image, s: ImageEnhance.Brightness(image).enhance(1 + 0.9 * s),
    lambda image, s: ImageEnhance.Sharpness(image).enhance(1 + 0.9 * s),
)
_UNSIGNED_OPERATIONS: tuple[Callable[[Image.Image, float], Image.Image], ...] = (
    lambda image, _: ImageOps.autocontrast(image),
    lambda image, _: ImageOps.equalize(image),
    lambda image, _: ImageOps.invert(image),
    lambda image, s: ImageOps.posterize(image, 4 - int(4 * s) or 1),
    lambda image, s: ImageOps.solarize(image, int(256 * (1 - s))),
)


def rand_augment(images: np.ndarray, rng: Rng, *, operations: int = 2, magnitude: float = 0.9) -> np.ndarray:
    """RandAugment as in DeiT: `operations` random operations per image, each skipped with probability 0.5, then `flip`.

    The standard deviation of the magnitude is 0.05, as in DeiT. Images that do not have 3 channels are only mirrored.
    """
    if images.shape[-1] != 3:
        return flip(images, rng)
    changed = []
    for image in images:
        picture = Image.fromarray(image)
        for choice in rng.integers(len(_SIGNED_OPERATIONS) + len(_UNSIGNED_OPERATIONS), size=operations):
            strength = float(np.clip(rng.normal(magnitude, 0.05), 0, 1))
            sign, applied = rng.choice((-1, 1)), rng.uniform() < 0.5
            if not applied:
                continue
            if choice < len(_SIGNED_OPERATIONS):
                picture = _SIGNED_OPERATIONS[choice](picture, sign * strength)
            else:
                picture = _UNSIGNED_OPERATIONS[choice - len(_SIGNED_OPERATIONS)](picture, strength)
        changed.append(np.asarray(picture))
    return flip(np.stack(changed), rng)


def _unchanged(images: np.ndarray, rng: Rng) -> np.ndarray:
    del rng
    return images


AUGMENTATIONS: dict[str, Augmentation] = {
    "none": Augmentation(None, _unchanged),
    "crop_flip": Augmentation(None, crop_flip),
    "resized_crop_flip": Augmentation(random_region, flip),
    "rand_augment": Augmentation(random_region, rand_augment),
}
