"""Interfaces of data sets."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax
import numpy as np

Batch = dict[str, Any]
"""`"input"`, `"label"`, int32[B] or int32[B, …], and in training whatever else the loss reads.

The input is an array, `[B, …]`, or a dict or tuple of such arrays, for a network of several inputs."""


Normalization = dict[str, Any]
"""How the inputs of the network are made: `"formula"`, `"x"`, `"mean"` and `"deviation"`, per channel or column."""

NORMALIZED = "(x - mean) / deviation"

STREAM_OF_SPLIT = {"train": 0, "valid": 1}
"""Shuffled splits, each with a number that is part of its seeds."""


class DataError(ValueError):
    """Data cannot be found or read, or settings do not fit it."""


class Dataset(Protocol):
    """Three splits: `train` trains the weights, `valid` gives the quality in the reward, `test` the final metrics.

    One that has a `normalization` tells how inputs were normalised; one that has a `remark`, what was read. One that
    has `on_device` makes the inputs there: it tells the shape and type of one input in its batches, `example`, where
    that is not the source's. One that has `example_batch` can tell what its batches are like without reading them.
    """

    def train_batches(self, split: str, *, batch_size: int, first_step: int, augmented: bool) -> Iterator[Batch]:
        """Endless batches of `"train"` or `"valid"` from step `first_step` on, shuffled anew in each epoch.

        Raises:
          DataError: the batch is larger than the split.
        """
        ...

    def eval_batches(self, split: str, *, batch_size: int) -> Iterator[Batch]:
        """Batches of the whole split, in order; the last one is padded with examples of label −1."""
        ...


def on_device(dataset: Any) -> Callable[[Batch], Batch]:
    """The traced function that makes of a batch what networks take; for most data sets, the identity."""
    return getattr(dataset, "on_device", as_it_is)


def as_it_is(batch: Batch) -> Batch:
    """The identity."""
    return batch


def first_batch(dataset: Dataset, split: str, *, batch_size: int, augmented: bool | None = None) -> Batch | None:
    """A batch as those of a split: what the data set tells, or the first one; None if there is none.

    Args:
      dataset: the data set.
      split: name of the split.
      batch_size: size of the batch.
      augmented: whether training batches are meant, augmented or not; None: batches of evaluation.

    Raises:
      DataError: see `Dataset`.
    """
    if tell := getattr(dataset, "example_batch", None):
        return tell(split, batch_size=batch_size, augmented=bool(augmented))
    if augmented is None:
        return next(iter(dataset.eval_batches(split, batch_size=batch_size)), None)
    return next(dataset.train_batches(split, batch_size=batch_size, first_step=0, augmented=augmented))


class Source(Protocol):
    """Description of a data set that is not read yet, so that settings can be checked first.

    One that has `class_names` tells the name of each class; one that has `padding` tells whether labels of −1 are
    padding.
    """

    @property
    def example(self) -> Any:
        """Shape and type of one input of the network, without the batch axis; of several, a dict or tuple of these."""
        ...

    @property
    def classes(self) -> int:
        """Number of logits: the number of classes, or 1 for labels 0 and 1."""
        ...

    @property
    def train_examples(self) -> int:
        """Number of training examples, including those for validation."""
        ...

    def open(self, *, valid_examples: int, seed: int) -> Dataset:
        """Opens the data set; `valid_examples` of the training examples, selected by `seed`, are for validation.

        Raises:
          DataError: there are not more training examples than that, or data cannot be read.
        """
        ...


def check_batch_size(batch_size: int, split: str, examples: int) -> None:
    """Raises DataError if the batch is larger than the split."""
    if batch_size > examples:
        raise DataError(f"a batch of {batch_size} is larger than the {split} split, which has {examples} examples")


def set_aside(examples: int, valid_examples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Randomly selected indices of the training and of the validation examples, out of 0…`examples` − 1.

    Raises:
      DataError: one of the two would be empty.
    """
    if not 0 < valid_examples < examples:
        raise DataError(f"data.valid_examples={valid_examples}: expected 1…{examples - 1} of the training examples")
    order = np.random.default_rng(seed).permutation(examples)
    return order[valid_examples:], order[:valid_examples]


def padded(batch: Batch, batch_size: int) -> Batch:
    """Batch padded to `batch_size` with examples of label −1."""
    missing = batch_size - len(batch["label"])
    if not missing:
        return batch

    def filled(values: np.ndarray, fill: int) -> np.ndarray:
        return np.concatenate([values, np.full((missing, *values.shape[1:]), fill, values.dtype)])

    return {
        name: jax.tree.map(lambda leaf, fill=-1 if name == "label" else 0: filled(leaf, fill), values)
        for name, values in batch.items()
    }


def named_arrays(inputs: Any) -> list[tuple[str, Any]]:
    """The arrays of inputs with their names for messages, as in `input ids`; a single one is `input`."""
    return [
        (" ".join(["input", *(str(getattr(key, "key", getattr(key, "idx", key))) for key in path)]), leaf)
        for path, leaf in jax.tree.leaves_with_path(inputs)
    ]


def as_arrays(values: Any) -> Any:
    """What a batch holds as NumPy arrays: one, or a dict or tuple of them."""
    if isinstance(values, dict) or is_tuple_of_arrays(values):
        return jax.tree.map(np.asarray, values, is_leaf=is_list)
    return np.asarray(values)


def is_list(values: Any) -> bool:
    """Whether values are a list, which makes one array."""
    return isinstance(values, list)


def is_tuple_of_arrays(values: Any) -> bool:
    """Whether values are a tuple of arrays, and not a list or tuple of numbers that makes one array."""
    return isinstance(values, tuple) and all(
        hasattr(leaf, "shape") for leaf in jax.tree.leaves(values, is_leaf=is_list)
    )
