"""Data sets of images that do not fit in memory: grain decodes images as they are needed.

What its threads or processes do is a chunk: a few dozen images, uint8, that divide a batch. The order of images and the
random numbers of each depend on its position alone, so it is all the same how many there are. Batches are formed here.
"""

import atexit
import functools
import math
import multiprocessing
import os
import signal
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import grain
import jax
import numpy as np
from absl import flags

from launch.data.arrays import InMemory, Split, unchanged_batch
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
from launch.data.decoding import versions
from launch.data.image_records import BAD, FAR, NONE, Reading, Records
from launch.data.mixing import DRAW, Mixing, normalized

CHUNK = 32  # images at most
THREADS = 16  # of this process, if it has no workers
THREADS_OF_WORKER = 2
CHUNKS_OF_WORKER = 3  # outside of it: copied, in its queue, and taken out of it
PROCESS_BYTES = 180 * 2**20  # that a worker has for itself, or the trainer beside batches, as measured
KEPT_BYTES = 4 * 2**30  # of decoded validation images; if there are more, they are decoded anew for each batch
BATCHES_AHEAD = 1

_OPEN: weakref.WeakSet = weakref.WeakSet()  # iterators


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
            "train": Records(pool, train, reading),
            "valid": Records(pool, valid, reading),
            "test": Records(test, np.arange(len(test)), reading),
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
        one = {name: value[None] for name, value in self._splits[split].readable(0).items()}
        (one,) = self._checked(split, [one])
        if augmented and self._mixing.draws:
            one[DRAW] = np.zeros(1, np.uint32)
        return {name: np.broadcast_to(value[0], (batch_size, *value.shape[1:])) for name, value in one.items()}

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
                raise DataError(f"{split}: {FAR} records in a row cannot be read, as {min(self._bad[split])}")
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
        """Batches without what tells which records cannot be read; these are noted.

        Raises:
          DataError: there is one, and they are not to be left out.
        """
        for batch in batches:
            bad = {int(number) for number in batch.pop(BAD) if number != NONE}
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
            read = batch["label"] >= 0
            end = done + int(read.sum())
            images[done:end], labels[done:end] = batch["input"][read], batch["label"][read]
            done = end
        return InMemory({"valid": Split(images[:done], labels[:done])}, unchanged_batch, self._seed)

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
    except RuntimeError as error:
        raise DataError(f"reading images: {error}") from error
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
    """Makes a worker end when its parent has, killed or not, and not at signals that go to all processes."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
