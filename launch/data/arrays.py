"""Data sets that fit in memory."""

import dataclasses
import functools
import hashlib
import itertools
import numbers
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from launch.data.contract import (
    STREAM_OF_SPLIT,
    Batch,
    DataError,
    Normalization,
    check_batch_size,
    is_list,
    is_tuple_of_arrays,
    named_arrays,
    on_device,
    padded,
    set_aside,
)

MakeBatch = Callable[[Any, np.ndarray, np.random.Generator | None], Batch]
"""`(inputs, labels, rng) → batch`, augmented with random numbers of `rng`, or not augmented if `rng` is None."""


@dataclasses.dataclass(frozen=True)
class Split:
    """Examples of a split: inputs, `[N, …]`, and labels, `[N]` or `[N, …]`; integers of any type become int32.

    Inputs of a network of several are a dict or a tuple of arrays.

    Raises:
      DataError: inputs or labels are no array, or are masked.
    """

    inputs: Any
    labels: np.ndarray

    def __post_init__(self) -> None:
        several = isinstance(self.inputs, Mapping) or is_tuple_of_arrays(self.inputs)
        inputs = dict(self.inputs) if isinstance(self.inputs, Mapping) else self.inputs
        arrays = jax.tree.map(lambda a: _unwritable(_array("inputs", a)), inputs, is_leaf=is_list) if several else None
        object.__setattr__(self, "inputs", arrays if several else _unwritable(_array("inputs", inputs)))
        labels = _array("labels", self.labels)
        if labels.dtype.kind in "iub" and (labels.astype(np.int32) == labels).all():  # others are told later
            labels = labels.astype(np.int32)
        object.__setattr__(self, "labels", _unwritable(labels))

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, index: Any) -> tuple[Any, np.ndarray]:
        """Inputs and labels of the examples at an index."""
        return jax.tree.map(lambda leaf: leaf[index], self.inputs), self.labels[index]


def _unwritable(values: np.ndarray) -> np.ndarray:
    """A view that functions which make batches of it cannot write to."""
    view = values.view()
    view.flags.writeable = False
    return view


def _array(name: str, values: Any) -> np.ndarray:
    if np.ma.isMaskedArray(values):
        raise DataError(f"{name} are a masked array: expected one without a mask, which would be lost")
    try:
        return np.asarray(values)
    except ValueError as error:
        raise DataError(f"{name} are no array: {error}") from error


MOST_CLASSES = 2**24


def unchanged_batch(inputs: Any, labels: np.ndarray, rng: np.random.Generator | None) -> Batch:
    """Makes a batch without augmentation or normalisation."""
    del rng
    return {"input": inputs, "label": labels}


@dataclasses.dataclass(frozen=True)
class Arrays:
    """Data set from arrays: `config.data.name = "package.module:function"` names a function of yours that returns one.

    Attributes:
      train: training examples, of which some are set aside for validation.
      test: examples for the final metrics.
      classes: see `Source.classes`.
      make_batch: makes a batch of examples; its inputs must have the shape and type of those in `train`.
      padding: whether labels of −1 are padding, as in sequences of several lengths.

    Raises:
      DataError: `classes` is no whole number in 1 … `MOST_CLASSES`.
    """

    train: Split
    test: Split
    classes: int
    make_batch: MakeBatch = unchanged_batch
    padding: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.classes, numbers.Integral) or not 1 <= self.classes <= MOST_CLASSES:
            raise DataError(f"classes={self.classes!r}: expected a whole number above 0, up to {MOST_CLASSES}")
        object.__setattr__(self, "classes", int(self.classes))  # of NumPy, as in max(labels) + 1, JSON takes none

    @property
    def example(self) -> Any:
        """See `Source.example`."""
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), self.train.inputs)

    @property
    def train_examples(self) -> int:
        """See `Source.train_examples`."""
        return len(self.train)

    @functools.cached_property
    def content(self) -> str:
        """Digest of all examples."""
        digest = hashlib.sha256()
        for split in (self.train, self.test):
            named = named_arrays(split.inputs)
            for name, values in (*named, ("", split.labels)):
                digest.update(f"{name if len(named) > 1 else ''}{values.dtype.str}{values.shape}".encode())
                digest.update(np.ascontiguousarray(values).data)
        return digest.hexdigest()

    def open(self, *, valid_examples: int, seed: int) -> "InMemory":
        """See `Source.open`."""
        return in_memory(self.train, self.test, lambda _: self.make_batch, valid_examples=valid_examples, seed=seed)


def in_memory(
    pool: Split, test: Split, make_batch_for: Callable[[Split], MakeBatch], *, valid_examples: int, seed: int
) -> "InMemory":
    """Data set in memory, whose training and validation examples are taken from `pool`.

    `make_batch_for` receives the training split, for example to normalise by its mean.

    Raises:
      DataError: see `set_aside`.
    """
    train, valid = (Split(*pool.part(chosen)) for chosen in set_aside(len(pool), valid_examples, seed))
    return InMemory({"train": train, "valid": valid, "test": test}, make_batch_for(train), seed)


@dataclasses.dataclass(frozen=True)
class InMemory:
    """`Dataset` of arrays, with the splits `"train"`, `"valid"` and `"test"`; `remark` tells what was read."""

    splits: Mapping[str, Split]
    make_batch: MakeBatch
    seed: int
    remark: str = ""

    @property
    def normalization(self) -> Normalization | None:
        """How batches are normalised; None if unknown."""
        return getattr(self.make_batch, "normalization", None)

    @property
    def on_device(self) -> Callable[[Batch], Batch]:
        """See `contract.on_device`."""
        return on_device(self.make_batch)

    def train_batches(self, split: str, *, batch_size: int, first_step: int, augmented: bool) -> Iterator[Batch]:
        """See `Dataset.train_batches`."""
        examples = self.splits[split]
        check_batch_size(batch_size, split, len(examples))
        steps_per_epoch = len(examples) // batch_size
        stream = STREAM_OF_SPLIT[split]
        order, order_epoch = np.empty(0, int), -1
        for step in itertools.count(first_step):
            epoch, position = divmod(step, steps_per_epoch)
            if epoch != order_epoch:
                order = np.random.default_rng((self.seed, stream, epoch)).permutation(len(examples))
                order_epoch = epoch
            chosen = order[position * batch_size : (position + 1) * batch_size]
            rng = np.random.default_rng((self.seed, stream, epoch, position)) if augmented else None
            yield self.make_batch(*examples.part(chosen), rng)

    def eval_batches(self, split: str, *, batch_size: int) -> Iterator[Batch]:
        """See `Dataset.eval_batches`."""
        examples = self.splits[split]
        for start in range(0, len(examples), batch_size):
            part = examples.part(slice(start, start + batch_size))
            yield padded(self.make_batch(*part, None), batch_size)
