"""What is checked of examples before the first step: their number, shapes, types and values."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from launch.data.arrays import Arrays
from launch.data.contract import Batch, DataError, Dataset, as_arrays, named_arrays

_BLOCK = 1024  # examples that are looked at together


class Labels(NamedTuple):
    """The labels that a loss and a quality take.

    Attributes:
      shape: shape of the label of one example.
      classes: labels are the integers 0 … classes − 1; None for finite values of `dtype`.
      dtype: type of labels that are no class numbers.
      padding: whether labels of −1 are padding.
      present: labels that the validation and the test split have to have.
    """

    shape: tuple[int, ...]
    classes: int | None
    dtype: Any = np.dtype(np.int32)
    padding: bool = False
    present: tuple[int, ...] = ()


def check_arrays(source: Arrays, expected: Labels) -> None:
    """Checks the training and the test examples of arrays as the network gets them, all of them, without augmentation.

    Raises:
      DataError: something cannot be; the message has the split and the number of the example, from 0.
    """
    for name, split in (("train", source.train), ("test", source.test)):
        labels = split.labels
        for each, inputs in named_arrays(split.inputs):
            if inputs.ndim == 0 or labels.ndim == 0 or len(inputs) != len(labels):
                raise DataError(
                    f"{name}: {each.replace('input', 'inputs')} of shape {inputs.shape}, labels of shape "
                    f"{labels.shape}: expected one label each"
                )
        if not len(split):
            raise DataError(f"{name}: there are no examples")
        for first in range(0, len(split), _BLOCK):
            part = split.part(slice(first, first + _BLOCK))
            batch = made_batch(source, *part, None)
            check_batch(name, batch, source.example, expected, first=first)
            if len(batch["label"]) != len(part[1]):
                raise DataError(f"make_batch gives {len(batch['label'])} of {len(part[1])} examples: expected all")
            if first == 0:
                again = made_batch(source, *part, None)
                arrays = [
                    jax.tree.leaves([as_arrays(made[key]) for key in ("input", "label")]) for made in (batch, again)
                ]
                if not all(map(np.array_equal, *arrays)):
                    raise DataError("make_batch without rng gives another batch each time: draw from rng only")


def made_batch(source: Arrays, inputs: Any, labels: np.ndarray, rng: np.random.Generator | None) -> dict[str, Any]:
    """A batch of arrays, augmented if there is an `rng`.

    Raises:
      DataError: the function that makes it fails, which is the user's, or gives no batch.
    """
    try:
        batch = source.make_batch(inputs, labels, rng)
    except Exception as error:
        raise DataError(f"make_batch(inputs, labels, rng) fails: {type(error).__name__}: {error}") from error
    if not isinstance(batch, dict):
        raise DataError(f"make_batch gives a {type(batch).__name__}: expected a dict with input and label")
    return batch


def check_present(dataset: Dataset, batch_size: int, expected: Labels) -> None:
    """Raises DataError if the validation or the test split lacks a label that it has to have; reads as few batches."""
    for split in ("valid", "test") if expected.present else ():
        missing = set(expected.present)
        for batch in dataset.eval_batches(split, batch_size=batch_size):
            missing -= set(np.unique(batch["label"]).tolist())
            if not missing:
                break
        if missing:
            raise DataError(f"{split}: no label is {' or '.join(map(str, sorted(missing)))}: there is nothing to rank")


def check_evaluation_batch(place: str, batch: Batch | None, example: Any, expected: Labels) -> None:
    """Checks the first batch of a split that is evaluated, of which the last examples may be padding.

    Raises:
      DataError: there is none, or see `check_batch`.
    """
    real = np.flatnonzero(~_void(np.asarray(batch["label"]))) if batch and "label" in batch else []
    if batch is None or not len(real):
        raise DataError(f"{place}: there is no example with a label")
    if len({len(values) for values in jax.tree.leaves(batch)}) == 1:
        batch = jax.tree.map(lambda values: values[: real[-1] + 1], batch)
    check_batch(place, batch, example, expected)


def check_batch(place: str, batch: Batch, example: Any, expected: Labels, *, first: int = 0) -> None:
    """Checks inputs and labels of a batch.

    Args:
      place: where the batch is from, for messages.
      batch: see `contract.Batch`.
      example: shape and type that one input has to have, or a dict or tuple of these.
      expected: labels that there may be.
      first: number of the first example.

    Raises:
      DataError: something cannot be; the message has the number of the example.
    """
    if missing := [name for name in ("input", "label") if name not in batch]:
        raise DataError(f"{place}: a batch has only {', '.join(batch)}: expected {', '.join(missing)} as well")
    given, labels = as_arrays(batch["input"]), np.asarray(batch["label"])
    if jax.tree.structure(given) != jax.tree.structure(example):
        names = [", ".join(name for name, _ in named_arrays(tree)) for tree in (given, example)]
        raise DataError(f"{place}: a batch has {names[0]}: expected {names[1]}, as those of train")
    for (name, inputs), (_, one) in zip(named_arrays(given), named_arrays(example), strict=True):
        if inputs.shape[1:] != one.shape or inputs.dtype != one.dtype:
            raise DataError(
                f"{place}: {name.replace('input', 'inputs')} are {inputs.dtype} of shape "
                f"{_of_several(inputs.shape[1:])}: expected {np.dtype(one.dtype)} of shape {_of_several(one.shape)}, "
                "as those of train are"
            )
        if len(labels) != len(inputs):
            raise DataError(f"{place}: {len(inputs)} inputs and {len(labels)} labels: expected one label each")
        _check_finite(f"{place}: the {name}", inputs, first)
    _check_labels(place, labels, expected, first)


def check_type(what: str, dtype: Any) -> None:
    """Raises DataError if values of a type are no numbers that JAX can hold."""
    own = np.dtype(dtype)
    if not (jnp.issubdtype(own, np.number) or own.kind == "b") or not own.isnative:
        raise DataError(f"{what} are of type {own.str}: expected numbers, in the byte order of this machine")


def _check_finite(what: str, values: np.ndarray, first: int) -> None:
    """Checks that values can be held in 32 bits and are finite numbers."""
    # An axis of stride 0 repeats one entry.
    once = values[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in values.strides)]
    if values.dtype.kind in "iu" and values.dtype.itemsize > 4:
        bounds = np.iinfo("int32" if values.dtype.kind == "i" else "uint32")
        wrong, expected = (once < bounds.min) | (once > bounds.max), f"{bounds.min} … {bounds.max}"
    elif values.dtype.kind in "iub":
        return
    else:
        with np.errstate(over="ignore"):
            held = once.astype(np.float32) if once.dtype.kind == "f" else once
            wrong, expected = ~np.isfinite(held), "finite numbers, as float32 too"
    if wrong.any():
        place = tuple(np.argwhere(wrong)[0])
        raise DataError(f"{what} of example {first + int(place[0])} has a {once[place]}: expected {expected}")


def _check_labels(place: str, labels: np.ndarray, expected: Labels, first: int) -> None:
    classes = expected.classes
    kinds = "iu" if classes or np.dtype(expected.dtype).kind in "iu" else np.dtype(expected.dtype).kind
    if labels.shape[1:] != expected.shape or labels.dtype.kind not in kinds:
        kind = "integers" if kinds == "iu" else np.dtype(expected.dtype).name
        hint = "; a loss of yours that takes others states them, as in fliqs_jax/losses.py" if classes else ""
        raise DataError(
            f"{place}: labels are {labels.dtype} of shape {_of_several(labels.shape[1:])}: expected {kind} of shape "
            f"{_of_several(expected.shape)}{hint}"
        )
    padding = "" if expected.padding else "; −1 is padding, where the data declare it (padding=True)"
    if classes is None:
        _check_finite(f"{place}: the label", labels, first)
        void = _void(labels)
        if void.any() and not expected.padding:
            raise DataError(f"{place}: the label of example {first + int(np.argmax(void))} is −1{padding}")
        return
    wrong = ((labels < 0) & ~((labels == -1) & expected.padding)) | (labels >= classes)
    if wrong.any():
        index = tuple(np.argwhere(wrong)[0])
        hint = padding if labels[index] == -1 else ""
        raise DataError(
            f"{place}: the label of example {first + int(index[0])} is {labels[index]}: expected 0 … "
            f"{classes - 1}{hint}"
        )


def _void(labels: np.ndarray) -> np.ndarray:
    """Which examples have the label of padding: bool[N]."""
    return (labels == -1).all(axis=tuple(range(1, labels.ndim)))


def _of_several(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(['N', *map(str, shape)])}]"
