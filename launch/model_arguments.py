"""Arguments of commands that describe a model: its settings, and the shapes of its inputs."""

import argparse
import ast
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from fliqs_jax import models

INPUT = "shape of one example, as in 32,32,3; one option per input if there are several, as in ids=128:int32"


def example_of(model: str, texts: Sequence[str], dtype: str = "float32") -> Any:
    """Shape and type of one example of a model, from options such as `32,32,3`, or `128:int32` with a type of its own.

    Several inputs are named, `ids=128:int32`, or are the arguments of a call in order; `:int32` is a single number.
    Without options, the shape is the published one of a network of ours.

    Returns:
      A `jax.ShapeDtypeStruct`, or a dict or tuple of them.

    Raises:
      ValueError: not a list of whole numbers above 0, a leading 1, which would be a batch axis, or an unknown type; see
        also `models.input_shape`.
    """
    inputs = [(name, _parsed(text, place, dtype)) for text in texts for name, place in [_named(text)]]
    names = [name for name, _ in inputs]
    if any(names) and (len(set(names)) < len(names) or not all(names)):
        raise ValueError(f"--input={texts[-1]}: expected another name for each input, or none at all")
    if len(inputs) > 1 or any(names):
        return dict(inputs) if any(names) else tuple(leaf for _, leaf in inputs)
    given = inputs[0][1] if inputs else None
    shape = models.input_shape(model, given.shape if given else ())
    return jax.ShapeDtypeStruct(shape, given.dtype if given else np.dtype(dtype))


def several(example: Any) -> Any:
    """Shapes and types of two examples."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((2, *leaf.shape), leaf.dtype), example)


def _named(text: str) -> tuple[str, str]:
    """The name of an input, empty for none, and its shape as text."""
    name, separator, shape = text.partition("=")
    return (name, shape) if separator else ("", text)


def _parsed(text: str, place: str, dtype: str) -> jax.ShapeDtypeStruct:
    sizes, _, own = place.partition(":")
    try:
        shape = tuple(map(int, sizes.split(","))) if sizes or not own else ()
        kind = np.dtype(own or dtype)
        if any(size < 1 for size in shape):
            raise ValueError(sizes)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"--input={text}: expected the shape of one example, as in 32,32,3 or ids=128:int32"
        ) from error
    if len(shape) > 1 and shape[0] == 1:
        raise ValueError(f"--input={text}: expected the shape of one example, without a batch axis: {sizes[2:]}")
    return jax.ShapeDtypeStruct(shape, kind)


def positive(text: str) -> int:
    """Parses an option that is a whole number above 0; for argparse, which tells what is wrong."""
    if not text.isascii() or not text.isdigit() or not 0 < (number := int(text[:12])) < 2**31:
        raise argparse.ArgumentTypeError(f"{text}: expected a whole number above 0")
    return number


def network_settings(texts: Sequence[str]) -> dict[str, Any]:
    """Parses settings of a network, such as `width=16`.

    Raises:
      ValueError: a text is not of the form NAME=VALUE, or is an option of its own.
    """
    settings: dict[str, Any] = {}
    for text in texts:
        name, _, value = text.partition("=")
        if name in ("name", "classes"):
            raise ValueError(f"--set={text}: expected a setting of the network; see --model and --classes")
        try:
            settings[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
            raise ValueError(f"--set={text}: expected NAME=VALUE, as in width=16") from error
    return settings
