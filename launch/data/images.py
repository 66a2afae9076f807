"""Data sets of labelled images: scikit-learn's digits, and those of TensorFlow Datasets."""

import dataclasses
import functools
import hashlib
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from launch.data.arrays import InMemory, MakeBatch, Split, in_memory
from launch.data.augmentation import AUGMENTATIONS, Augmentation, central_region, region_resized, whole
from launch.data.contract import NORMALIZED, Batch, DataError, Dataset, Normalization, as_it_is
from launch.data.decoding import UnreadableError, find_decoder
from launch.data.image_records import Reading
from launch.data.mixing import DRAW, Mixing
from launch.data.stream import Stream

# Statistics of ImageNet's pixels per channel, which networks with published weights expect.
IMAGENET_MEAN = 255 * np.asarray((0.485, 0.456, 0.406), np.float32)
IMAGENET_DEVIATION = 255 * np.asarray((0.229, 0.224, 0.225), np.float32)


@dataclasses.dataclass(frozen=True)
class ImageBatches:
    """Makes batches of images, uint8[B, H, W, C] → float32[B, H, W, C]: augments and normalises them.

    What mixes them on the device is `on_device`.
    """

    mean: np.ndarray
    deviation: np.ndarray
    augmentation: Augmentation
    mixing: Mixing

    @functools.cached_property
    def on_device(self) -> Callable[[Batch], Batch]:
        """See `contract.on_device`."""
        return jax.jit(self.mixing) if self.mixing.draws else as_it_is

    @property
    def normalization(self) -> Normalization:
        """See `arrays.InMemory.normalization`."""
        mean, deviation = self.mean.tolist(), self.deviation.tolist()
        return {"formula": NORMALIZED, "x": "pixels of 0…255", "mean": mean, "deviation": deviation}

    def __call__(self, images: np.ndarray, labels: np.ndarray, rng: np.random.Generator | None) -> Batch:
        """See `arrays.MakeBatch`."""
        if rng is not None:
            if crop := self.augmentation.crop:
                size = images.shape[1:3]
                images = np.stack([region_resized(image, crop(size, rng), size) for image in images])
            images = self.augmentation.distort(images, rng)
        batch = {"input": (images.astype(np.float32) - self.mean) / self.deviation, "label": labels}
        if rng is not None and self.mixing.draws:
            batch[DRAW] = rng.integers(2**32, size=len(labels), dtype=np.uint32)
        return batch


def _require_bytes(place: str, dtype: Any) -> None:
    """Raises DataError for images that are not of 8 bits, which would be cut off."""
    if np.dtype(dtype) != np.uint8:
        raise DataError(f"{place}: images are {np.dtype(dtype)}: expected uint8; serve others by a function of yours")


def _augmentation(config: ConfigDict) -> Augmentation:
    if config.augment not in AUGMENTATIONS:
        raise DataError(f"data.augment={config.augment!r}: expected one of {', '.join(AUGMENTATIONS)}")
    return AUGMENTATIONS[config.augment]


def _mixing(config: ConfigDict) -> Mixing:
    for key in ("mixup", "cutmix"):
        if not 0 <= config[key] < math.inf:
            raise DataError(f"data.{key}={config[key]}: expected 0 (off) or a positive number")
    if not 0 <= config.erasing <= 1:
        raise DataError(f"data.erasing={config.erasing}: expected a probability")
    return Mixing(config.mixup, config.cutmix, config.erasing)


def _normalized_by(augmentation: Augmentation, mixing: Mixing, train: Split) -> MakeBatch:
    """Makes batches normalised by mean and standard deviation of the training images per channel."""
    axes = tuple(range(train.inputs.ndim - 1))
    return ImageBatches(
        mean=train.inputs.mean(axes, dtype=np.float64).astype(np.float32),
        deviation=np.maximum(train.inputs.std(axes, dtype=np.float64), 1.0).astype(np.float32),
        augmentation=augmentation,
        mixing=mixing,
    )


class Digits:
    """scikit-learn's 1,797 handwritten digits; a fixed fifth of them is the test split."""

    example = jax.ShapeDtypeStruct((8, 8, 1), np.dtype(np.float32))
    classes = 10
    class_names = tuple("0123456789")
    settings = ("image_size", "augment", "mixup", "cutmix", "erasing")  # of `config.data`, that it uses
    train_examples = 1437

    def __init__(self, config: ConfigDict) -> None:
        if config.image_size not in (None, 8):
            raise DataError(f"data.image_size={config.image_size}: digits have 8 pixels a side")
        self._make_batch_for = functools.partial(_normalized_by, _augmentation(config), _mixing(config))

    def open(self, *, valid_examples: int, seed: int) -> InMemory:
        """See `Source.open`."""
        return in_memory(*self.read(), self._make_batch_for, valid_examples=valid_examples, seed=seed)

    def read(self) -> tuple[Split, Split]:
        """Training and validation images, and the test split."""
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        digits: Any = load_digits()
        images = (digits.images[..., None] * (255 / 16)).astype(np.uint8)
        train_x, test_x, train_y, test_y = train_test_split(
            images, digits.target.astype(np.int32), test_size=0.2, random_state=0, stratify=digits.target
        )
        return Split(train_x, train_y), Split(test_x, test_y)


class TfdsImages:
    """Image classification data set of TensorFlow Datasets, read as random-access records without TensorFlow."""

    def __init__(self, config: ConfigDict) -> None:
        import tensorflow_datasets as tfds

        self._config, self._size = config, config.image_size
        decode = find_decoder(config.decoder)
        if config.on_bad_record != "error" and not config.stream:
            raise DataError(
                f"data.on_bad_record={config.on_bad_record!r}: expected 'error', unless images are streamed "
                "(data.stream=True)"
            )
        self._augmentation, self._mixing = _augmentation(config), _mixing(config)
        if self._size is not None and self._size < 1:
            raise DataError(f"data.image_size={self._size}: expected a number of pixels above 0")
        try:
            builder = tfds.builder(config.name, data_dir=config.data_dir, file_format="array_record")
        except tfds.core.DatasetNotFoundError as error:
            raise DataError(f"no data set {config.name!r}: expected digits or an image set of tfds") from error
        if not {"image", "label"} <= set(features := builder.info.features or {}):
            raise DataError(f"tfds data set {config.name!r} has features {sorted(features)}: expected image and label")
        if config.download:
            try:
                builder.download_and_prepare()
            except Exception as error:  # A download, a disk or the script of a data set may raise anything.
                raise DataError(f"tfds could not prepare {config.name!r}: {type(error).__name__}: {error}") from error
        splits = builder.info.splits
        if missing := {"train", config.test_split} - set(splits):
            raise DataError(
                f"tfds data set {config.name!r} has no split {', '.join(sorted(missing))} prepared in "
                f"{builder.data_dir} (data_dir={config.data_dir!r}); --config.data.download=True lets tfds prepare it"
            )
        image, label = features["image"], features["label"]
        if len(image.shape or ()) != 3 or getattr(label, "num_classes", None) is None:
            raise DataError(f"tfds data set {config.name!r} has {image} and {label}: expected images and class labels")
        _require_bytes(f"tfds data set {config.name!r}", image.np_dtype)
        *size, channels = image.shape
        if self._size is None and None in size:
            raise DataError(f"images of {config.name!r} differ in size: set --config.data.image_size")
        self._builder = builder
        shape = (*(size if self._size is None else (self._size, self._size)), channels)
        self.example = jax.ShapeDtypeStruct(shape, np.dtype(np.float32))
        # Images of equal shape are resized whole; others are cropped at the centre.
        fit = central_region if None in size else whole
        self._reading = Reading(decode, (shape[0], shape[1]), channels, fit, self._augmentation)
        self.classes: int = label.num_classes
        self.class_names = tuple(label.names)
        self.train_examples: int = splits["train"].num_examples

    @property
    def content(self) -> str:
        """Name, version, and digest of the record of what tfds prepared."""
        record = pathlib.Path(self._builder.data_dir) / "dataset_info.json"
        return f"{self._builder.info.full_name} {hashlib.sha256(record.read_bytes()).hexdigest()}"

    def open(self, *, valid_examples: int, seed: int) -> Dataset:
        """See `Source.open`; in memory, or as a stream if `config.stream` is true."""
        from tensorflow_datasets.core.decode import SkipDecoding

        records: Any = self._builder.as_data_source(decoders={"image": SkipDecoding()})
        pool, test = records["train"], records[self._config.test_split]
        if self._config.stream:
            return Stream(
                pool,
                test,
                reading=self._reading,
                mean=IMAGENET_MEAN,
                deviation=IMAGENET_DEVIATION,
                mixing=self._mixing,
                skip_bad=self._config.on_bad_record == "skip",
                valid_examples=valid_examples,
                seed=seed,
                workers=self._config.workers,
            )
        make_batch_for = functools.partial(_normalized_by, self._augmentation, self._mixing)
        splits = self._decoded("train", pool), self._decoded("test", test)
        return in_memory(*splits, make_batch_for, valid_examples=valid_examples, seed=seed)

    def _decoded(self, split: str, records: Sequence[Any]) -> Split:
        """All records as arrays: images, uint8[N, H, W, C], and labels, int32[N].

        Raises:
          DataError: an image cannot be read.
        """
        images = np.empty((len(records), *self.example.shape), np.uint8)
        labels = np.empty(len(records), np.int32)
        for i, record in enumerate(records):
            try:
                images[i], labels[i] = self._reading.plain(record), record["label"]
            except UnreadableError as error:
                raise DataError(f"{split}: record {i}: {error}: expected an image file") from error
        return Split(images, labels)
