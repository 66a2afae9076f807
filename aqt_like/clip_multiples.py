"""Precomputed clip multiples: the best one of each format on synthetic data (FLIQS, §3 "Switchable Clipping" and A.8).

The data are Gaussian or Laplacian, without or with outliers: one value in 10, 100, 1,000 or 10,000 is ±3 × the largest
of the others. Multiples are in units of the tensor's root mean square. The table is stored beside this file and
computed by

    python -m aqt_like.clip_multiples
"""

import functools
import json
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from aqt_like import calibration
from aqt_like.formats import Format, format_table, parse_format

_TABLE_FILE = pathlib.Path(__file__).with_name("clip_multiples.json")
_SHAPES = ("gaussian", "laplacian")
_OUTLIER_RATES = (10, 100, 1000, 10000)
DISTRIBUTIONS = (*_SHAPES, *(f"{shape}-1:{rate}" for shape in _SHAPES for rate in _OUTLIER_RATES))

_TABULATED = (
    *(f"int{bits}" for bits in range(2, 9)),
    *(f"uint{bits}" for bits in range(2, 9)),
    *(f"e{exponent}m{total - 1 - exponent}" for total in range(2, 10) for exponent in range(1, min(total, 8))),
    *("e4m3fn", "e5m2ieee", "e3m4ieee"),
)


def precomputed_multiples(formats: Sequence[Format], distribution: str = "gaussian") -> tuple[float, ...]:
    """Clip multiples from the stored table, one per format; 1 for unscaled formats, which do not clip.

    Multiples of unsigned formats are those of the rectified distribution: the output of a ReLU, zeros included.

    Args:
      formats: the formats.
      distribution: one of `DISTRIBUTIONS`, as in `gaussian` or `laplacian-1:1000`.

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
            "Add the formats to _TABULATED and run: python -m aqt_like.clip_multiples"
        )
    return tuple(stored[f.name] if f.scaled else 1.0 for f in formats)


@functools.cache
def _stored_table() -> dict[str, dict[str, float]]:
    return json.loads(_TABLE_FILE.read_text())["multiples"]


def quantiles(distribution: str, count: int = 2**16) -> np.ndarray:
    """Evenly spaced quantiles of a distribution, with its outliers: a noise-free sample, float32[count]."""
    shape, _, rate = distribution.partition("-1:")
    probabilities = (np.arange(count) + 0.5) / count
    if shape == "gaussian":
        from scipy.special import ndtri

        sample = ndtri(probabilities).astype(np.float32)
    else:
        sample = (np.sign(probabilities - 0.5) * -np.log1p(-np.abs(2 * probabilities - 1))).astype(np.float32)
    if rate:
        # Outliers replace evenly spaced quantiles; their signs alternate.
        positions = np.linspace(0, count - 1, count // int(rate)).astype(int)
        sample[positions] = 3 * sample.max() * np.where(np.arange(len(positions)) % 2, 1, -1)
    return sample


def _compute_table() -> dict[str, dict[str, float]]:
    formats = [parse_format(name) for name in _TABULATED]
    best_multiples = jax.jit(calibration.best_multiples)
    table = {}
    for distribution in DISTRIBUTIONS:
        sample = quantiles(distribution)
        multiples = {}
        for signed in (True, False):
            members = [f for f in formats if (f.lowest < 0) == signed]
            rows = format_table(members, [1.0] * len(members))
            best = best_multiples(jnp.asarray(sample if signed else np.maximum(sample, 0)), rows)
            multiples |= {f.name: round(float(m), 4) for f, m in zip(members, best, strict=True)}
        table[distribution] = {name: multiples[name] for name in _TABULATED}
    return table


def main() -> None:
    """Computes the table of least-squared-error clip multiples and stores it beside this file."""
    document = {
        "command": "python -m aqt_like.clip_multiples",
        "unit": "root mean squares of the tensor",
        "multiples": _compute_table(),
    }
    _TABLE_FILE.write_text(json.dumps(document, indent=1) + "\n")
    print(f"wrote {_TABLE_FILE}")


if __name__ == "__main__":
    main()
