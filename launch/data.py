"""Image data sets in memory, cut into three splits that never overlap, as batches that depend on the step alone.

Since the batch of step `i` is a pure function of the seed and `i`, a run that is resumed at step `i` needs no other
record of where it was in the data.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from ml_collections import ConfigDict

Batch = dict[str, np.ndarray]

AUGMENTATIONS = ("none", "crop_flip")


class DataError(ValueError):
    """Data that cannot be found, or settings that do not fit it."""


@dataclasses.dataclass(frozen=True)
class Split:
    """Images, uint8[N, H, W, C], and labels, int32[N]."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Three splits: weights are trained on `train`, formats chosen on `valid`, final figures taken on `test`.

    `mean` and `deviation`, float32[C], are those of the training images; batches are normalised by them.
    """

    train: Split
    valid: Split
    test: Split
    mean: np.ndarray
    deviation: np.ndarray

    def normalized(self, images: np.ndarray) -> np.ndarray:
        """float32 images of mean 0 and deviation 1 per channel."""
        return (images.astype(np.float32) - self.mean) / self.deviation


class Source(Protocol):
    """A data set that is known but not yet read, so that settings can be checked before any time is spent."""

    @property
    def image_shape(self) -> tuple[int, ...]:
        """[H, W, C]."""
        ...

    @property
    def classes(self) -> int:
        """Number of labels."""
        ...

    @property
    def train_examples(self) -> int:
        """Number of images to train with, validation included."""
        ...

    def read(self) -> tuple[Split, Split]:
        """Reads and decodes everything: all images to train with (validation included), and the test split."""
        ...


def find(config: ConfigDict) -> Source:
    """The data set `config.name`: `digits` comes with scikit-learn, every other name is one of tfds.

    Args:
      config: `name`, `data_dir` (of tfds; None is its default), `download` (whether tfds may), `image_size` (None keeps
        the images' own).

    Raises:
      DataError: no such data set, or not of images with labels.
    """
    return Digits() if config.name == "digits" else TfdsImages(config)


def load(source: Source, *, valid_examples: int, seed: int) -> Dataset:
    """Reads `source` and sets `valid_examples` of its training images aside; `seed` decides which.

    Raises:
      DataError: fewer training images than that.
    """
    pool, test = source.read()
    if not 0 < valid_examples < len(pool):
        raise DataError(f"data.valid_examples={valid_examples}: expected 1…{len(pool) - 1}, out of the training images")
    order = np.random.default_rng(seed).permutation(len(pool))
    train, valid = order[valid_examples:], order[:valid_examples]
    images = pool.images[train]
    axes = tuple(range(images.ndim - 1))
    return Dataset(
        train=Split(images, pool.labels[train]),
        valid=Split(pool.images[valid], pool.labels[valid]),
        test=test,
        mean=images.mean(axes, dtype=np.float64).astype(np.float32),
        deviation=np.maximum(images.std(axes, dtype=np.float64), 1.0).astype(np.float32),
    )


class Digits:
    """scikit-learn's 1,797 handwritten digits; a fifth of them, always the same, is the test split."""

    image_shape: tuple[int, ...] = (8, 8, 1)
    classes = 10
    train_examples = 1437

    def read(self) -> tuple[Split, Split]:
        """See `Source.read`."""
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        digits: Any = load_digits()
        images = (digits.images[..., None] * (255 / 16)).astype(np.uint8)
        train_x, test_x, train_y, test_y = train_test_split(
            images, digits.target.astype(np.int32), test_size=0.2, random_state=0, stratify=digits.target
        )
        return Split(train_x, train_y), Split(test_x, test_y)


class TfdsImages:
    """An image classification set of tfds, as random-access records: TensorFlow is not needed."""

    def __init__(self, config: ConfigDict) -> None:
        import tensorflow_datasets as tfds

        self._name, self._size = config.name, config.image_size
        try:
            builder = tfds.builder(config.name, data_dir=config.data_dir, file_format="array_record")
        except tfds.core.DatasetNotFoundError as error:
            raise DataError(f"no data set {config.name!r}: expected digits or an image set of tfds") from error
        if not {"image", "label"} <= set(features := builder.info.features or {}):
            raise DataError(f"tfds data set {config.name!r} has features {sorted(features)}: expected image and label")
        if config.download:
            try:
                builder.download_and_prepare()
            except Exception as error:  # Whatever a download, a disk or a data set's own script may raise.
                raise DataError(f"tfds could not prepare {config.name!r}: {type(error).__name__}: {error}") from error
        self._splits = builder.info.splits
        if missing := {"train", "test"} - set(self._splits):
            raise DataError(
                f"tfds data set {config.name!r} has no split {', '.join(sorted(missing))} prepared in "
                f"{builder.data_dir} (data_dir={config.data_dir!r}); --config.data.download=True lets tfds prepare it"
            )
        *size, channels = features["image"].shape
        if self._size is None and None in size:
            raise DataError(f"images of {config.name!r} differ in size: set --config.data.image_size")
        self._builder = builder
        self.image_shape: tuple[int, ...] = (*(size if self._size is None else (self._size, self._size)), channels)
        self.classes: int = features["label"].num_classes
        self.train_examples: int = self._splits["train"].num_examples

    def read(self) -> tuple[Split, Split]:
        """See `Source.read`."""
        records: Any = self._builder.as_data_source()
        return self._decode(records["train"]), self._decode(records["test"])

    def _decode(self, records: Sequence[Any]) -> Split:
        images = np.empty((len(records), *self.image_shape), np.uint8)
        labels = np.empty(len(records), np.int32)
        for i, record in enumerate(records):
            images[i] = _resized(record["image"], self._size)
            labels[i] = record["label"]
        return Split(images, labels)


def _resized(image: np.ndarray, size: int | None) -> np.ndarray:
    """`image` at size × size pixels; whole-number reductions average."""
    if size is None or image.shape[:2] == (size, size):
        return image
    from PIL import Image

    channels = [
        Image.fromarray(image[..., c]).resize((size, size), Image.Resampling.BOX) for c in range(image.shape[-1])
    ]
    return np.stack([np.asarray(channel) for channel in channels], -1)


def train_batches(
    dataset: Dataset, *, split: str, batch_size: int, seed: int, first_step: int = 0, augment: str = "none"
) -> Iterator[Batch]:
    """Endless shuffled batches of `split` from step `first_step` on; each epoch is a new permutation.

    Args:
      dataset: the data.
      split: `"train"` or `"valid"`.
      batch_size: examples per batch.
      seed: of permutations and augmentation.
      first_step: number of the first batch.
      augment: `"none"`, or `"crop_flip"` (shift by up to an eighth of the side, mirror).

    Raises:
      DataError: a batch larger than the split, or an unknown augmentation.
    """
    source: Split = getattr(dataset, split)
    if batch_size > len(source):
        raise DataError(f"a batch of {batch_size} is larger than the {split} split, which has {len(source)} examples")
    if augment not in AUGMENTATIONS:
        raise DataError(f"unknown augmentation {augment!r}: expected one of {', '.join(AUGMENTATIONS)}")
    steps_per_epoch = len(source) // batch_size
    stream = {"train": 0, "valid": 1}[split]
    order, order_epoch = np.empty(0, int), -1
    for step in itertools.count(first_step):
        epoch, position = divmod(step, steps_per_epoch)
        if epoch != order_epoch:
            order, order_epoch = np.random.default_rng((seed, stream, epoch)).permutation(len(source)), epoch
        chosen = order[position * batch_size : (position + 1) * batch_size]
        images = source.images[chosen]
        if augment == "crop_flip":
            images = _crop_flip(images, np.random.default_rng((seed, stream, epoch, position)))
        yield {"image": dataset.normalized(images), "label": source.labels[chosen]}


def _crop_flip(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    margin = images.shape[1] // 8
    padded = np.pad(images, ((0, 0), (margin, margin), (margin, margin), (0, 0)), mode="reflect")
    batch, height, width, _ = images.shape
    row = rng.integers(0, 2 * margin + 1, batch)[:, None] + np.arange(height)
    column = rng.integers(0, 2 * margin + 1, batch)[:, None] + np.arange(width)
    column = np.where(rng.integers(0, 2, batch)[:, None] == 1, column[:, ::-1], column)
    return padded[np.arange(batch)[:, None, None], row[:, :, None], column[:, None, :]]


def eval_batches(dataset: Dataset, *, split: str, batch_size: int) -> Iterator[Batch]:
    """All of `split` once, in order; the last batch is padded with examples of label −1."""
    source: Split = getattr(dataset, split)
    for start in range(0, len(source), batch_size):
        images, labels = source.images[start : start + batch_size], source.labels[start : start + batch_size]
        padding = batch_size - len(labels)
        images = np.concatenate([images, np.zeros((padding, *images.shape[1:]), images.dtype)])
        yield {
            "image": dataset.normalized(images),
            "label": np.concatenate([labels, np.full(padding, -1, np.int32)]),
        }
