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
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import grain
import jax
import numpy as np
from absl import flags

from launch.data.arrays import InMemory, Split, unchanged_batch
from launch.data.augmentation import Augmentation, Region, Size
from launch.data.contract import (
    NORMALIZED,
    STREAM_OF_SPLIT,
    Batch,
    DataError,
    Normalization,
    check_batch_size,
    padded,
    set_aside,
)
from launch.data.decoding import Decode, UnreadableError, versions
from launch.data.mixing import DRAW, Mixing, normalized

CHUNK = 32  # images at most
THREADS = 16  # of this process, if it has no workers
THREADS_OF_WORKER = 2
CHUNKS_OF_WORKER = 3  # outside of it: copied, in its queue, and taken out of it
PROCESS_BYTES = 180 * 2**20  # that a worker has for itself, or the trainer beside batches, as measured
KEPT_BYTES = 4 * 2**30  # of decoded validation images; if there are more, they are decoded anew for each batch
BATCHES_AHEAD = 1

_BAD, _NONE = "bad", -1  # in chunks: the number of a record that cannot be read
_FAR = 32  # records after one that cannot be read, among which another is looked for
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

    def example(self, position: int, rng: np.random.Generator | None = None) -> Batch:
        """The example at a position, augmented if there is an `rng`; one that cannot be read is as padding is."""
        number = int(self.indices[position])
        record = self.records[number]
        try:
            image = self.reading.plain(record) if rng is None else self.reading.augmented(record, rng)
            label, bad = record["label"], _NONE
        except UnreadableError:
            image, label, bad = np.zeros((*self.reading.size, self.reading.channels), np.uint8), -1, number
        return {"input": image, "label": np.asarray(label, np.int32), _BAD: np.asarray(bad)}

    def readable(self, position: int, rng: np.random.Generator | None = None) -> Batch:
        """As `example`, but the next of the split that can be read, if that is not far."""
        first = found = self.example(position, rng)
        for further in range(1, _FAR):
            if found[_BAD] == _NONE:
                break
            found = self.example((position + further) % len(self.indices), rng)
        return found | {_BAD: first[_BAD]}

    def fault(self, number: int) -> str:
        """What is wrong with a record that cannot be read."""
        record = self.records[number]
        named = f", {record['file_name'].decode()}" if "file_name" in record else ""
        try:
            self.reading.plain(record)
        except UnreadableError as error:
            return f"record {number}{named}: {error}"
        return f"record {number}{named}"


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
        skip_bad: bool,
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
          skip_bad: whether records that cannot be read are left out: of training, the next ones take their places.
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
        self._skip_bad, self._bad = skip_bad, {split: set[int]() for split in self._splits}
        shape = (*reading.size, reading.channels)
        self.example = jax.ShapeDtypeStruct(shape, np.dtype(np.uint8))
        self.on_device = jax.jit(self._prepared)

    def _prepared(self, batch: Batch) -> Batch:
        return self._mixing(batch | {"input": normalized(batch["input"], self._mean, self._deviation)})

    def host_bytes(self, batch_size: int, valid_batch_size: int) -> int:
        """Bytes of host memory that training on batches of these sizes takes at most, for images and workers."""
        image, kept = math.prod(self.example.shape), self._bytes_of_valid <= KEPT_BYTES
        chunks = self._workers * CHUNKS_OF_WORKER if self._workers else 2 * THREADS
        # Of batches, one is formed, some are ahead, one is handed over, and one is on its way to the devices.
        ahead = BATCHES_AHEAD + 3
        if kept:
            of_valid, streams = self._bytes_of_valid + 2 * valid_batch_size * image, 1
        else:
            of_valid, streams = ahead * valid_batch_size * image, 2
        of_chunks = streams * chunks * CHUNK * image
        return ahead * batch_size * image + of_valid + of_chunks + (1 + streams * self._workers) * PROCESS_BYTES

    @property
    def _bytes_of_valid(self) -> int:
        return len(self._splits["valid"].indices) * math.prod(self.example.shape)

    @property
    def normalization(self) -> Normalization:
        """See `arrays.InMemory.normalization`."""
        mean, deviation = self._mean.tolist(), self._deviation.tolist()
        return {"formula": NORMALIZED, "x": "pixels of 0…255", "mean": mean, "deviation": deviation}

    @property
    def reading(self) -> dict[str, Any]:
        """How records were read, for summaries: the decoder, and how many that it met cannot be read, by split."""
        skipped = {split: len(bad) for split, bad in self._bad.items()}
        return {"decoder": versions(self._splits["train"].reading.decode), "skipped_records": skipped}

    def example_batch(self, split: str, *, batch_size: int, augmented: bool) -> Batch:
        """A batch of one image of a split, for its shapes and types."""
        example = next(iter(self._checked(split, [jax.tree.map(lambda x: x[None], self._splits[split].readable(0))])))
        example = jax.tree.map(lambda x: x[0], example)
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
        return self._train_batches(split, **settings)

    def _train_batches(self, split: str, *, batch_size: int, first_step: int, augmented: bool) -> Iterator[Batch]:
        of_split, number = self._splits[split], STREAM_OF_SPLIT[split]
        used = len(of_split.indices) // batch_size * batch_size
        seed = int(np.random.SeedSequence((self._seed, number)).generate_state(1)[0])
        shuffled = grain.MapDataset.range(len(of_split.indices)).seed(seed).shuffle()
        examples = (shuffled.random_map if augmented else shuffled.map)(of_split.readable)[:used]
        chunk = _chunk(batch_size)
        first = first_step * (batch_size // chunk)
        batches = self._read(examples.batch(chunk).repeat()[first:], batch_size)
        for step, batch in enumerate(self._checked(split, batches), first_step):
            if (batch["label"] < 0).any():
                raise DataError(f"{split}: {_FAR} records in a row cannot be read, as {min(self._bad[split])}")
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
        examples = grain.MapDataset.range(len(of_split.indices)).map(of_split.example)
        return self._checked(split, self._read(examples.batch(_chunk(batch_size)), batch_size))

    def _checked(self, split: str, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Batches without what tells which records cannot be read, of which account is taken.

        Raises:
          DataError: there is one, and they are not to be left out; or many in a row.
        """
        for batch in batches:
            bad = {int(number) for number in batch.pop(_BAD) if number != _NONE}
            self._bad[split] |= bad
            if bad and not self._skip_bad:
                raise DataError(
                    f"{split}: {self._splits[split].fault(min(bad))}: expected an image file; with "
                    "data.on_bad_record='skip', records that cannot be read are left out and counted"
                )
            yield batch

    @functools.cached_property
    def _kept(self) -> InMemory | None:
        """The validation split, decoded."""
        if self._bytes_of_valid > KEPT_BYTES:
            return None
        count = len(self._splits["valid"].indices)
        images, labels = np.empty((count, *self.example.shape), np.uint8), np.empty(count, np.int32)
        done = 0
        for batch in self._plain("valid", CHUNK):
            end = done + len(batch["label"])
            images[done:end], labels[done:end] = batch["input"], batch["label"]
            done = end
        if self._bad["valid"]:
            images, labels = images[labels >= 0], labels[labels >= 0]
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
