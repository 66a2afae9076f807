"""What a compiled step does first with a batch of images: it normalises, erases and mixes them (mixup, CutMix)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from fliqs_jax.losses import LABEL_SHARE, MIXED_LABEL
from launch.data.contract import Batch

DRAW = "draw"
"""Random numbers of a training batch, uint32[B], from which images are mixed; other batches have none."""

_ATTEMPTS = 10  # at a rectangle that fits into the image


@dataclasses.dataclass(frozen=True)
class Mixing:
    """Random erasing, and mixup or CutMix of a batch with its reverse; if both are on, each has probability 0.5.

    Attributes:
      mixup: concentration of the Beta distribution of the share of the first image; 0 is off.
      cutmix: the same for pasting a rectangle of the second image into the first; 0 is off.
      erasing: probability that a rectangle of an image becomes noise.
    """

    mixup: float
    cutmix: float
    erasing: float

    @property
    def draws(self) -> bool:
        """Whether anything is on, so that training batches need random numbers."""
        return bool(self.mixup or self.cutmix or self.erasing)

    def __call__(self, batch: Batch) -> Batch:
        """Erases and mixes a batch of normalised float32 images that has a `DRAW`; leaves others as they are.

        Traced. `losses.cross_entropy` reads the mixed labels.
        """
        if DRAW not in batch:
            return batch
        batch = dict(batch)
        draw, images = batch.pop(DRAW), batch["input"]
        if self.erasing:
            images = jax.vmap(lambda image, seed: _erased(image, self.erasing, jax.random.key(seed)))(images, draw)
        if not self.mixup and not self.cutmix:
            return batch | {"input": images}
        # Of erasing there is one key per image, of mixing one per batch.
        images, share = self._mixed(images, jax.random.fold_in(jax.random.key(draw[0]), len(draw)))
        shares = jnp.full(len(images), share, jnp.float32)
        return batch | {"input": images, MIXED_LABEL: batch["label"][::-1], LABEL_SHARE: shares}

    def _mixed(self, images: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Images mixed with the batch in reverse, and the share of the first of each two."""
        choice, *keys, place = jax.random.split(key, 4)
        averaging, pasting = (
            jax.random.beta(k, strength, strength) if strength else jnp.float32(1)
            for k, strength in zip(keys, (self.mixup, self.cutmix), strict=True)
        )
        others = images[::-1]
        averaged = averaging * images + (1 - averaging) * others
        height, width = images.shape[1:3]
        pasted = _rectangle_around((height, width), 1 - pasting, place)
        cut = jnp.where(pasted[..., None], others, images)
        probability = 0.5 if self.mixup and self.cutmix else float(bool(self.cutmix))
        is_cut = jax.random.uniform(choice) < probability
        return jnp.where(is_cut, cut, averaged), jnp.where(is_cut, 1 - pasted.mean(), averaging)


def normalized(pixels: jax.Array, mean: np.ndarray, deviation: np.ndarray) -> jax.Array:
    """Inputs of a network, float32[B, H, W, C], from pixels, uint8, by mean and deviation per channel. Traced."""
    return (pixels.astype(jnp.float32) - mean) / deviation


def _within(size: tuple[int, int], top: jax.Array, left: jax.Array, bottom: jax.Array, right: jax.Array) -> jax.Array:
    """Mask of a rectangle, bool[H, W]."""
    rows, columns = jnp.arange(size[0])[:, None], jnp.arange(size[1])
    return (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)


def _rectangle_around(size: tuple[int, int], area: jax.Array, key: jax.Array) -> jax.Array:
    """Mask of a rectangle of a fraction `area` of the image around a random point, cut off at the border (CutMix)."""
    ends = []
    for side, k in zip(size, jax.random.split(key), strict=True):
        middle, half = jax.random.randint(k, (), 0, side), side * jnp.sqrt(area) / 2
        ends.append((jnp.round(middle - half), jnp.round(middle + half)))
    (top, bottom), (left, right) = ends
    return _within(size, top, left, bottom, right)


def _erased(image: jax.Array, probability: float, key: jax.Array) -> jax.Array:
    """An image, float32[H, W, C], of which a rectangle becomes noise at random (Zhong et al., 2017).

    The rectangle lies in the image: 2 to 33 % of its area, aspect ratio 3:10 to 10:3. Of ten draws, the first that fits
    is taken; if none does, the image is left as it is.
    """
    height, width, _ = image.shape
    whether, areas, shapes, places, noise = jax.random.split(key, 5)
    area = height * width * jax.random.uniform(areas, (_ATTEMPTS,), minval=0.02, maxval=1 / 3)
    shape = jnp.exp(jax.random.uniform(shapes, (_ATTEMPTS,), minval=np.log(0.3), maxval=np.log(1 / 0.3)))
    all_rows, all_columns = jnp.round(jnp.sqrt(area / shape)), jnp.round(jnp.sqrt(area * shape))
    fits = (all_rows < height) & (all_columns < width)
    first = jnp.argmax(fits)
    rows, columns = all_rows[first], all_columns[first]
    place = jax.random.uniform(places, (2,))
    top, left = jnp.floor(place[0] * (height - rows + 1)), jnp.floor(place[1] * (width - columns + 1))
    chosen = (jax.random.uniform(whether) < probability) & fits[first]
    covered = chosen & _within((height, width), top, left, top + rows, left + columns)
    return jnp.where(covered[..., None], jax.random.normal(noise, image.shape), image)
