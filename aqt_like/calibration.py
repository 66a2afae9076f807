"""Clip thresholds: how far a format's range should reach, in units of the tensor's root mean square.

FLIQS sets each threshold to a multiple of the profiled standard deviation and switches the multiple with the format
(§3, "Switchable Clipping"; A.2). The grids are symmetric about zero, so the deviation taken here is that from zero: the
root mean square, which equals the standard deviation for zero-mean tensors and stays meaningful after a ReLU.

Two sources of multiples: `precomputed_multiples` on synthetic data, stored beside this file by

    python -m aqt_like.calibration

and `best_multiples` on a real tensor.
"""

import functools
import json
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from aqt_like import formats as formats_lib
from aqt_like import gradients

_TABLE_FILE = pathlib.Path(__file__).with_name("clip_multiples.json")
_CANDIDATES = np.geomspace(1.0, 32.0, 201, dtype=np.float32)
DISTRIBUTIONS = ("gaussian", "laplacian")


def root_mean_square(x: jax.Array, axes: Sequence[int] | None = None) -> jax.Array:
    """Root mean square over `axes` (all by default); reduced axes are kept, so that it broadcasts against `x`."""
    return jnp.sqrt(jnp.mean(jnp.square(x), axis=axes, keepdims=axes is not None))


def clipped_error(x: jax.Array, row: formats_lib.FormatTable, multiple: jax.Array) -> jax.Array:
    """Mean squared error of quantising `x` with the clip threshold `multiple` × its root mean square."""
    return jnp.mean(jnp.square(gradients.straight_through(x, row, multiple * root_mean_square(x)) - x))


def best_multiples(
    x: jax.Array, table: formats_lib.FormatTable, candidates: jax.typing.ArrayLike = _CANDIDATES
) -> jax.Array:
    """The clip multiple of least mean squared error on `x` for every format of `table`.

    Returns:
      float32[K].
    """

    candidates = jnp.asarray(candidates)

    def best(row: formats_lib.FormatTable) -> jax.Array:
        errors = jax.lax.map(lambda multiple: clipped_error(x, row, multiple), candidates)
        return candidates[jnp.argmin(errors)]

    return jax.lax.map(best, table)


def precomputed_multiples(formats: Sequence[formats_lib.Format], distribution: str = "gaussian") -> tuple[float, ...]:
    """Clip multiples from the stored table; 1 for unscaled formats, which do not clip.

    Unsigned formats are calibrated on the rectified distribution (what a ReLU leaves of it, zeros included).

    Raises:
      ValueError: an unknown distribution, or a format that the table lacks.
    """
    if distribution not in DISTRIBUTIONS:
        raise ValueError(f"unknown distribution {distribution!r}: expected one of {', '.join(DISTRIBUTIONS)}")
    stored = _stored_table()[distribution]
    missing = [f.name for f in formats if f.scaled and f.name not in stored]
    if missing:
        raise ValueError(
            f"no clip multiple for {', '.join(missing)} in {_TABLE_FILE}; it has {', '.join(stored)}. "
            "Add the formats to _TABULATED and run: python -m aqt_like.calibration"
        )
    return tuple(stored[f.name] if f.scaled else 1.0 for f in formats)


@functools.cache
def _stored_table() -> dict[str, dict[str, float]]:
    return json.loads(_TABLE_FILE.read_text())["multiples"]


_TABULATED = (
    *(f"int{bits}" for bits in range(2, 9)),
    *(f"uint{bits}" for bits in range(2, 9)),
    *(f"e{exponent}m{total - 1 - exponent}" for total in range(3, 10) for exponent in range(1, min(total, 8))),
    *("e4m3fn", "e5m2ieee", "e3m4ieee"),
)


def _quantiles(distribution: str, count: int = 2**16) -> np.ndarray:
    """`count` evenly spaced quantiles: a sample without the noise of sampling."""
    probabilities = (np.arange(count) + 0.5) / count
    if distribution == "gaussian":
        from scipy.special import ndtri

        return ndtri(probabilities).astype(np.float32)
    return (np.sign(probabilities - 0.5) * -np.log1p(-np.abs(2 * probabilities - 1))).astype(np.float32)


def _compute_table() -> dict[str, dict[str, float]]:
    formats = [formats_lib.parse(name) for name in _TABULATED]
    table = {}
    for distribution in DISTRIBUTIONS:
        sample = _quantiles(distribution)
        multiples = {}
        for signed in (True, False):
            members = [f for f in formats if (f.lowest < 0) == signed]
            rows = formats_lib.format_table(members, [1.0] * len(members))
            best = jax.jit(best_multiples)(jnp.asarray(sample if signed else np.maximum(sample, 0)), rows)
            multiples |= {f.name: round(float(m), 4) for f, m in zip(members, best, strict=True)}
        table[distribution] = {name: multiples[name] for name in _TABULATED}
    return table


def main() -> None:
    """Computes the table of least-squared-error clip multiples and stores it beside this file."""
    document = {
        "command": "python -m aqt_like.calibration",
        "unit": "root mean squares of the tensor",
        "multiples": _compute_table(),
    }
    _TABLE_FILE.write_text(json.dumps(document, indent=1) + "\n")
    print(f"wrote {_TABLE_FILE}")


if __name__ == "__main__":
    main()
