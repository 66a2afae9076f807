"""Records of images, as workers read them: one by one, and what is done about those that cannot be read."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from launch.data.augmentation import Augmentation, Region, Size
from launch.data.contract import Batch
from launch.data.decoding import Decode, UnreadableError

BAD, NONE = "bad", -1
"""The number of a record that cannot be read, in an example; that of none."""

FAR = 32
"""Records after one that cannot be read, among which another is looked for."""


@dataclasses.dataclass(frozen=True)
class Reading:
    """How records with `"image"`, the bytes of a file, and `"label"` are read.

    Attributes:
      decode: see `decoding.Decode`.
      size: (H, W) of the images.
      channels: number of their channels.
      fit: `(size of an image, size) → region`, used where the augmentation does not crop.
      augmentation: augmentation of single training images.
    """

    decode: Decode
    size: Size
    channels: int
    fit: Callable[[Size, Size], Region]
    augmentation: Augmentation

    def plain(self, record: Any) -> np.ndarray:
        """The image of a record, uint8[H, W, C]."""
        return self.decode(record["image"], lambda image: self.fit(image, self.size), self.size, self.channels)

    def augmented(self, record: Any, rng: np.random.Generator) -> np.ndarray:
        """The image of a record, uint8[H, W, C], augmented."""
        crop = self.augmentation.crop
        region_of = (lambda image: crop(image, rng)) if crop else (lambda image: self.fit(image, self.size))
        image = self.decode(record["image"], region_of, self.size, self.channels)
        return self.augmentation.distort(image[None], rng)[0]


@dataclasses.dataclass(frozen=True)
class Records:
    """The records of a split."""

    records: Sequence[Any]
    indices: Any  # int64[N]
    reading: Reading

    def example(self, position: int, rng: np.random.Generator | None = None) -> Batch:
        """The example at a position, augmented if there is an `rng`; one that cannot be read is like padding."""
        number = int(self.indices[position])
        record = self.records[number]
        try:
            image = self.reading.plain(record) if rng is None else self.reading.augmented(record, rng)
            label, bad = record["label"], NONE
        except UnreadableError:
            image, label, bad = np.zeros((*self.reading.size, self.reading.channels), np.uint8), -1, number
        return {"input": image, "label": np.asarray(label, np.int32), BAD: np.asarray(bad)}

    def readable(self, position: int, rng: np.random.Generator | None = None) -> Batch:
        """As `example`, but the next of the split that can be read, if that is not far."""
        first = found = self.example(position, rng)
        for further in range(1, FAR):
            if found[BAD] == NONE:
                break
            found = self.example((position + further) % len(self.indices), rng)
        return found | {BAD: first[BAD]}

    def fault(self, number: int) -> str:
        """What is wrong with a record that cannot be read."""
        record = self.records[number]
        named = f", {record['file_name'].decode()}" if "file_name" in record else ""
        try:
            self.reading.plain(record)
        except UnreadableError as error:
            return f"record {number}{named}: {error}"
        return f"record {number}{named}"
