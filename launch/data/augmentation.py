"""Augmentation of training images, and mixing of images together with their labels (mixup, CutMix)."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from fliqs_jax.losses import LABEL_SHARE, MIXED_LABEL
from launch.data.contract import Batch

Rng = np.random.Generator
Size = tuple[int, int]


class Augmentation(NamedTuple):
    """Augmentation of training images.

    Attributes:
      crop: `(image, size, rng) → image`, from uint8[H, W, C] of any size to `size`; None to resize images instead.
      distort: `(images, rng) → images` on a batch, uint8[B, H, W, C].
    """

    crop: Callable[[np.ndarray, Size, Rng], np.ndarray] | None
    distort: Callable[[np.ndarray, Rng], np.ndarray]


def resized(image: np.ndarray, size: Size, resampling: Image.Resampling = Image.Resampling.BOX) -> np.ndarray:
    """Image, uint8[H, W, C], resized to `size`; by default, integer reduction factors average pixels."""
    if image.shape[:2] == size:
        return image
    channels = [Image.fromarray(image[..., c]).resize(size[::-1], resampling) for c in range(image.shape[-1])]
    return np.stack([np.asarray(channel) for channel in channels], -1)


def centre_crop(image: np.ndarray, size: Size) -> np.ndarray:
    """Central crop of 7/8 of the shorter side, resized to `size` (Szegedy et al., 2015)."""
    height, width = image.shape[:2]
    scale = min(height / size[0], width / size[1]) * 0.875
    side = [max(round(scale * n), 1) for n in size]
    top, left = (height - side[0]) // 2, (width - side[1]) // 2
    return resized(image[top : top + side[0], left : left + side[1]], size, Image.Resampling.BICUBIC)


def random_resized_crop(image: np.ndarray, size: Size, rng: Rng) -> np.ndarray:
    """Random crop of 8 to 100 % of the area, aspect ratio 3:4 to 4:3, resized to `size` (Szegedy et al., 2015)."""
    height, width = image.shape[:2]
    for _ in range(10):
        area = height * width * rng.uniform(0.08, 1.0)
        shape = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        rows, columns = round(np.sqrt(area / shape)), round(np.sqrt(area * shape))
        if 0 < rows <= height and 0 < columns <= width:
            top, left = rng.integers(height - rows + 1), rng.integers(width - columns + 1)
            return resized(image[top : top + rows, left : left + columns], size, Image.Resampling.BICUBIC)
    return centre_crop(image, size)


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
    """Images, uint8[B, H, W, C], mirrored at random."""
    mirrored = rng.integers(0, 2, len(images))[:, None, None, None] == 1
    return np.where(mirrored, images[:, :, ::-1], images)


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
    "resized_crop_flip": Augmentation(random_resized_crop, flip),
    "rand_augment": Augmentation(random_resized_crop, rand_augment),
}


class Mixing(NamedTuple):
    """Random erasing, and mixup or CutMix of a batch with its reverse; if both are on, each has probability 0.5.

    Attributes:
      mixup: concentration of the Beta distribution of the share of the first image; 0 is off.
      cutmix: the same for pasting a rectangle of the second image into the first; 0 is off.
      erasing: probability that a rectangle of an image becomes noise.
    """

    mixup: float
    cutmix: float
    erasing: float

    def __call__(self, batch: Batch, rng: Rng) -> Batch:
        """Erases and mixes a batch of normalised float32 images; `losses.cross_entropy` reads the mixed labels."""
        images = _erased(batch["input"], self.erasing, rng) if self.erasing else batch["input"]
        batch = batch | {"input": images}
        if not self.mixup and not self.cutmix:
            return batch
        pasting = rng.uniform() < (0.5 if self.mixup and self.cutmix else bool(self.cutmix))
        strength = self.cutmix if pasting else self.mixup
        share = rng.beta(strength, strength)
        reversed_images = images[::-1]
        if pasting:
            mixed = images.copy()
            rows, columns = _rectangle(images.shape[1:3], 1 - share, 1.0, rng)
            mixed[:, rows, columns] = reversed_images[:, rows, columns]
            covered = (rows.stop - rows.start) * (columns.stop - columns.start)
            share = 1 - covered / (images.shape[1] * images.shape[2])
        else:
            mixed = (share * images + (1 - share) * reversed_images).astype(np.float32)
        shares = np.full(len(images), share, np.float32)
        return batch | {"input": mixed, MIXED_LABEL: batch["label"][::-1].copy(), LABEL_SHARE: shares}


def _rectangle(size: Size, area: float, shape: float, rng: Rng) -> tuple[slice, slice]:
    """Rectangle of a fraction `area` of the image around a random point, cut off at the border."""
    sides = (size[0] * np.sqrt(area / shape), size[1] * np.sqrt(area * shape))
    slices = []
    for side, length in zip(sides, size, strict=True):
        middle = rng.integers(length)
        slices.append(slice(max(round(middle - side / 2), 0), min(round(middle + side / 2), length)))
    return slices[0], slices[1]


def _erased(images: np.ndarray, probability: float, rng: Rng) -> np.ndarray:
    """Random erasing (Zhong et al., 2017): noise in a rectangle of 2 to 33 % of the area, aspect ratio 3:10 to 10:3."""
    images = images.copy()
    for i in np.flatnonzero(rng.uniform(size=len(images)) < probability):
        shape = np.exp(rng.uniform(np.log(0.3), np.log(1 / 0.3)))
        rows, columns = _rectangle(images.shape[1:3], rng.uniform(0.02, 1 / 3), shape, rng)
        images[i, rows, columns] = rng.standard_normal(images[i, rows, columns].shape)
    return images
