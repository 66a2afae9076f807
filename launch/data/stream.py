"""Data sets of images that do not fit in memory: grain decodes images as they are needed."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from launch.data.arrays import MakeBatch
from launch.data.augmentation import Augmentation, Size
from launch.data.contract import STREAM_OF_SPLIT, Batch, Normalization, check_batch_size, padded, set_aside

THREADS = 16
BATCHES_AHEAD = 2


@dataclasses.dataclass(frozen=True)
class _Subset:
    """Records with the given indices."""

    records: Sequence[Any]
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        return self.records[int(self.indices[index])]


def _example(image: np.ndarray, record: Any) -> dict[str, np.ndarray]:
    return {"image": image, "label": np.asarray(record["label"], np.int32)}


class Stream:
    """`Dataset` of records with `"image"`, uint8[H, W, C] of any size, and `"label"`."""

    def __init__(
        self,
        pool: Sequence[Any],
        test: Sequence[Any],
        *,
        size: Size,
        fit: Callable[[np.ndarray, Size], np.ndarray],
        augmentation: Augmentation,
        make_batch: MakeBatch,
        valid_examples: int,
        seed: int,
        workers: int,
    ) -> None:
        """Splits the records; images are read later, by the iterators.

        Args:
          pool: training records, of which some are set aside for validation.
          test: records for the final metrics.
          size: (H, W) of the images in batches.
          fit: `(image, size) → image`, used where the augmentation does not crop.
          augmentation: augmentation of single training images.
          make_batch: normalises and mixes batches of augmented images.
          valid_examples: number of validation examples.
          seed: seed of split, order and augmentation.
          workers: number of decoding processes; 0 decodes in threads of this process.

        Raises:
          DataError: see `set_aside`.
        """
        train, valid = set_aside(len(pool), valid_examples, seed)
        self._records: dict[str, Any] = {"train": _Subset(pool, train), "valid": _Subset(pool, valid), "test": test}
        self._size, self._fit, self._augmentation, self._make_batch = size, fit, augmentation, make_batch
        self._seed, self._workers = seed, workers

    def _cropped(self, record: Any, rng: np.random.Generator) -> dict[str, np.ndarray]:
        crop = self._augmentation.crop
        image = crop(record["image"], self._size, rng) if crop else self._fit(record["image"], self._size)
        return _example(self._augmentation.distort(image[None], rng)[0], record)

    def _whole(self, record: Any) -> dict[str, np.ndarray]:
        return _example(self._fit(record["image"], self._size), record)

    @property
    def normalization(self) -> Normalization | None:
        """See `arrays.InMemory.normalization`."""
        return getattr(self._make_batch, "normalization", None)

    def train_batches(self, split: str, *, batch_size: int, first_step: int, augmented: bool) -> Iterator[Batch]:
        """See `Dataset.train_batches`."""
        records = self._records[split]
        check_batch_size(batch_size, split, len(records))
        seed = int(np.random.SeedSequence((self._seed, STREAM_OF_SPLIT[split])).generate_state(1)[0])
        shuffled = grain.MapDataset.source(records).seed(seed).shuffle()
        images = shuffled.random_map(self._cropped) if augmented else shuffled.map(self._whole)
        batches = images.batch(batch_size, drop_remainder=True)
        if augmented:
            made = batches.random_map(lambda batch, rng: self._make_batch(batch["image"], batch["label"], rng))
        else:
            made = batches.map(lambda batch: self._make_batch(batch["image"], batch["label"], None))
        return self._read(made.repeat()[first_step:])

    def eval_batches(self, split: str, *, batch_size: int) -> Iterator[Batch]:
        """See `Dataset.eval_batches`."""
        batches = grain.MapDataset.source(self._records[split]).map(self._whole).batch(batch_size)
        made = batches.map(lambda batch: self._make_batch(batch["image"], batch["label"], None))
        return self._read(made.map(lambda batch: padded(batch, batch_size)))

    def _read(self, batches: grain.MapDataset) -> Iterator[Batch]:
        """Iterates over the batches in order, independent of the number of threads or processes."""
        threads = grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=BATCHES_AHEAD)
        ahead = batches.to_iter_dataset(threads)
        if self._workers:
            if not flags.FLAGS.is_parsed():  # grain passes flags to its processes; in a library call none were parsed.
                flags.FLAGS.mark_as_parsed()
            ahead = ahead.mp_prefetch(grain.MultiprocessingOptions(num_workers=self._workers))
        return iter(ahead)
