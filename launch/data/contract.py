"""What a data set has to offer."""

from collections.abc import Iterator
from typing import Protocol

import jax
import numpy as np

Batch = dict[str, np.ndarray]
"""`"input"`, `[B, …]`, and `"label"`, int32[B] or int32[B, …]; in training whatever else the loss reads."""


STREAM_OF_SPLIT = {"train": 0, "valid": 1}
"""The splits that are shuffled, each with a number that enters its seeds."""


class DataError(ValueError):
    """Data that cannot be found or read, or settings that do not fit it."""


class Dataset(Protocol):
    """Three splits: weights are trained on `train`, formats chosen on `valid`, final figures taken on `test`."""

    def train_batches(self, split: str, *, batch_size: int, first_step: int, augmented: bool) -> Iterator[Batch]:
        """Endless shuffled batches of `"train"` or `"valid"` from step `first_step` on; each epoch is a new order.

        Raises:
          DataError: a batch larger than the split.
        """
        ...

    def eval_batches(self, split: str, *, batch_size: int) -> Iterator[Batch]:
        """All of `split` once, in order; the last batch is padded with examples of label −1."""
        ...


class Source(Protocol):
    """A data set that is known but not yet read, so that settings can be checked before any time is spent."""

    @property
    def example(self) -> jax.ShapeDtypeStruct:
        """Shape and type of one input, as the network receives it."""
        ...

    @property
    def classes(self) -> int:
        """Number of labels; 1 where they are 0 and 1 and the network has one logit."""
        ...

    @property
    def train_examples(self) -> int:
        """Number of examples to train with, validation included."""
        ...

    def open(self, *, valid_examples: int, seed: int) -> Dataset:
        """Reads what has to be read, and sets `valid_examples` of the training examples aside; `seed` decides which.

        Raises:
          DataError: fewer training examples than that, or data that cannot be read.
        """
        ...


def check_batch_size(batch_size: int, split: str, examples: int) -> None:
    """Raises DataError where a batch is larger than the split."""
    if batch_size > examples:
        raise DataError(f"a batch of {batch_size} is larger than the {split} split, which has {examples} examples")


def set_aside(examples: int, valid_examples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The indices of the training and of the validation examples, out of `examples`.

    Raises:
      DataError: one of the two would be empty.
    """
    if not 0 < valid_examples < examples:
        raise DataError(f"data.valid_examples={valid_examples}: expected 1…{examples - 1} of the training examples")
    order = np.random.default_rng(seed).permutation(examples)
    return order[valid_examples:], order[:valid_examples]


def padded(batch: Batch, batch_size: int) -> Batch:
    """A batch filled up with examples of label −1."""
    missing = batch_size - len(batch["label"])
    if not missing:
        return batch
    fill = {"label": -1}
    return {
        name: np.concatenate([values, np.full((missing, *values.shape[1:]), fill.get(name, 0), values.dtype)])
        for name, values in batch.items()
    }
