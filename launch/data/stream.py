"""Data sets of images that do not fit in memory: grain decodes images as they are needed.

What its threads or processes do is a chunk: a few dozen images, uint8, that divide a batch. The order of images and the
random numbers of each depend on its position alone, so it is all the same how many there are. Batches are formed here.
"""

import atexit
import dataclasses
import functools
import math
import multiprocessing
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import jax
import numpy as np
from absl import flags

from launch.data.arrays import InMemory, Split, unchanged_batch
from launch.data.augmentation import Augmentation, Region, Size
from launch.data.contract import NORMALIZED, STREAM_OF_SPLIT, Batch, Normalization, check_batch_size, padded, set_aside
from launch.data.decoding import Decode
from launch.data.mixing import DRAW, Mixing, normalized

CHUNK = 32  # images at most
THREADS = 16  # of this process, if it has no workers
THREADS_OF_WORKER = 2
KEPT_BYTES = 4 * 2**30  # of decoded validation images; if there are more, they are decoded anew for each batch
BATCHES_AHEAD = 1

_OPEN: weakref.WeakSet = weakref.WeakSet()  # iterators


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
class _Split:
    """Records with the given indices; this is what workers get."""

    records: Sequence[Any]
    indices: Any  # int64[N]
    reading: Reading

    def example(self, index: int, rng: np.random.Generator | None = None) -> dict[str, np.ndarray]:
        record = self.records[int(index)]
        image = self.reading.plain(record) if rng is None else self.reading.augmented(record, rng)
        return {"input": image, "label": np.asarray(record["label"], np.int32)}


class Stream:
    """`Dataset` of records with `"image"`, the bytes of an image file of any size, and `"label"`.

    Its batches hold uint8[B, H, W, C]; `on_device` normalises and mixes them. Validation images are decoded once, when
    they are first asked for, and kept if they take at most `KEPT_BYTES`.
    """

    def __init__(
        self,
        pool: Sequence[Any],
        test: Sequence[Any],
        *,
        reading: Reading,
        mean: np.ndarray,
        deviation: np.ndarray,
        mixing: Mixing,
        valid_examples: int,
        seed: int,
        workers: int,
    ) -> None:
        """Splits the records; images are read later, by the iterators.

        Args:
          pool: training records, of which some are set aside for validation.
          test: records for the final metrics.
          reading: how images are read.
          mean: of the pixels per channel, by which they are normalised.
          deviation: the same.
          mixing: erases and mixes training images.
          valid_examples: number of validation examples.
          seed: seed of split, order and augmentation.
          workers: number of decoding processes; 0 decodes in threads of this process.

        Raises:
          DataError: see `set_aside`.
        """
        train, valid = set_aside(len(pool), valid_examples, seed)
        self._splits = {
            "train": _Split(pool, train, reading),
            "valid": _Split(pool, valid, reading),
            "test": _Split(test, np.arange(len(test)), reading),
        }
        self._mean, self._deviation, self._mixing = mean, deviation, mixing
        self._seed, self._workers = seed, workers
        shape = (*reading.size, reading.channels)
        self.example = jax.ShapeDtypeStruct(shape, np.dtype(np.uint8))
        self.on_device = jax.jit(self._prepared)

    def _prepared(self, batch: Batch) -> Batch:
        return self._mixing(batch | {"input": normalized(batch["input"], self._mean, self._deviation)})

    @property
    def normalization(self) -> Normalization:
        """See `arrays.InMemory.normalization`."""
        mean, deviation = self._mean.tolist(), self._deviation.tolist()
        return {"formula": NORMALIZED, "x": "pixels of 0…255", "mean": mean, "deviation": deviation}

    def example_batch(self, split: str, *, batch_size: int, augmented: bool) -> Batch:
        """A batch of one image of a split, for its shapes and types."""
        of_split = self._splits[split]
        example = of_split.example(of_split.indices[0])
        if augmented and self._mixing.draws:
            example[DRAW] = np.asarray(0, np.uint32)
        return {name: np.broadcast_to(value, (batch_size, *np.shape(value))) for name, value in example.items()}

    def train_batches(self, split: str, *, batch_size: int, first_step: int, augmented: bool) -> Iterator[Batch]:
        """See `Dataset.train_batches`."""
        of_split = self._splits[split]
        check_batch_size(batch_size, split, len(of_split.indices))
        settings = {"batch_size": batch_size, "first_step": first_step, "augmented": augmented}
        if split == "valid" and not augmented and self._kept is not None:
            return self._kept.train_batches(split, **settings)
        return self._train_batches(of_split, STREAM_OF_SPLIT[split], **settings)

    def _train_batches(
        self, split: _Split, number: int, *, batch_size: int, first_step: int, augmented: bool
    ) -> Iterator[Batch]:
        used = len(split.indices) // batch_size * batch_size
        seed = int(np.random.SeedSequence((self._seed, number)).generate_state(1)[0])
        shuffled = grain.MapDataset.source(split.indices).seed(seed).shuffle()
        examples = (shuffled.random_map if augmented else shuffled.map)(split.example)[:used]
        chunk = _chunk(batch_size)
        first = first_step * (batch_size // chunk)
        for step, batch in enumerate(self._read(examples.batch(chunk).repeat()[first:], batch_size), first_step):
            if augmented and self._mixing.draws:
                rng = np.random.default_rng((self._seed, number, step))
                batch |= {DRAW: rng.integers(2**32, size=batch_size, dtype=np.uint32)}
            yield batch

    def eval_batches(self, split: str, *, batch_size: int) -> Iterator[Batch]:
        """See `Dataset.eval_batches`."""
        if split == "valid" and self._kept is not None:
            return self._kept.eval_batches(split, batch_size=batch_size)
        return (padded(batch, batch_size) for batch in self._plain(split, batch_size))

    def _plain(self, split: str, batch_size: int) -> Iterator[Batch]:
        of_split = self._splits[split]
        examples = grain.MapDataset.source(of_split.indices).map(of_split.example)
        return self._read(examples.batch(_chunk(batch_size)), batch_size)

    @functools.cached_property
    def _kept(self) -> InMemory | None:
        """The validation split, decoded."""
        count = len(self._splits["valid"].indices)
        if count * math.prod(self.example.shape) > KEPT_BYTES:
            return None
        images, labels = np.empty((count, *self.example.shape), np.uint8), np.empty(count, np.int32)
        done = 0
        for batch in self._plain("valid", CHUNK):
            end = done + len(batch["label"])
            images[done:end], labels[done:end] = batch["input"], batch["label"]
            done = end
        return InMemory({"valid": Split(images, labels)}, unchanged_batch, self._seed)

    def _read(self, chunks: grain.MapDataset, batch_size: int) -> Iterator[Batch]:
        """Iterates over batches of chunks, in order."""
        threads = THREADS_OF_WORKER if self._workers else THREADS
        ahead = chunks.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads))
        if self._workers:
            if not flags.FLAGS.is_parsed():  # grain passes flags to its processes; in a library call none were parsed.
                flags.FLAGS.mark_as_parsed()
            processes = grain.MultiprocessingOptions(num_workers=self._workers)
            ahead = ahead.mp_prefetch(processes, worker_init_fn=_end_with_parent)
        batches = ahead.batch(batch_size // _chunk(batch_size), batch_fn=_joined)
        read = _closed_after(grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=BATCHES_AHEAD))
        _OPEN.add(read)
        return read


def _closed_after(batches: grain.IterDataset) -> Iterator[Batch]:
    reader = iter(batches)
    try:
        yield from reader
    finally:
        reader.close()


@atexit.register
def _close_all() -> None:
    """Ends threads and processes before Python takes away what they need for it."""
    for reader in list(_OPEN):
        reader.close()


def _chunk(batch_size: int) -> int:
    """The most images up to `CHUNK` that divide a batch."""
    return max(size for size in range(1, CHUNK + 1) if batch_size % size == 0)


def _joined(chunks: Sequence[Batch]) -> Batch:
    """Chunks as one batch, outside of the memory that is shared with workers."""
    return {name: np.concatenate([np.asarray(chunk[name]) for chunk in chunks]) for name in chunks[0]}


def _end_with_parent(*_: int) -> None:
    """Makes a worker end when its parent has, killed or not."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
