"""Quantisation errors of single tensors: FLIQS, Figure 4a (setup in A.8), and the formats of Table 7 (A.9).

    python -m benchmarks.tensor_error        (about a minute)

Tensors are Gaussian or Laplacian, without or with outliers (A.8; `aqt_like.clip_multiples`). Writes
results/tensor_error.json beside this file and three pictures in docs/.

* Switching error (FLIQS, Eq. 5): root mean square difference between a tensor at k and at k + 1 bits, relative to the
  root mean square of the tensor, both clipped at its largest magnitude; mean over 1,000 tensors, and the fit
  A · exp(−B k) + C. (If outliers set the threshold, nearly all values at 2 and 3 bits are zero, and the fit is poor.)
* Clipping: the percentile of magnitudes, 1 to 100, that minimises the mean squared error over 100 tensors.
* 8-bit floats: relative root mean square error with the stored clip multiples, over 100 tensors.
"""

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize

from aqt_like import calibration, clip_multiples, gradients
from aqt_like.formats import FormatTable, format_table, parse_format
from benchmarks import pictures
from launch.reports import charts

RESULTS = pathlib.Path(__file__).parent / "results" / "tensor_error.json"
DISTRIBUTIONS = ("gaussian", "laplacian", "gaussian-1:1000", "laplacian-1:1000", "gaussian-1:10", "laplacian-1:10")
BITS = range(2, 9)
FP8 = ("e1m6", "e2m5", "e3m4", "e4m3", "e5m2")
VALUES = 2**12


def tensors(distribution: str, count: int) -> jax.Array:
    """Independent tensors, float32[count, VALUES], with outliers of ±3 × the largest magnitude (FLIQS, A.8)."""
    shape, _, rate = distribution.partition("-1:")
    key, places, signs = jax.random.split(jax.random.key(0), 3)
    draw = jax.random.normal if shape == "gaussian" else jax.random.laplace
    x = draw(key, (count, VALUES))
    if not rate:
        return x
    outliers = 3 * jnp.max(jnp.abs(x), axis=1, keepdims=True) * jax.random.rademacher(signs, x.shape)
    return jnp.where(jax.random.uniform(places, x.shape) < 1 / int(rate), outliers, x)


def rows(names: list[str], multiples: list[float] | None = None) -> FormatTable:
    """Format table of the names, with clip multiples of 1 by default."""
    return format_table([parse_format(name) for name in names], multiples or [1.0] * len(names))


@jax.jit
def switching_errors(x: jax.Array, table: FormatTable) -> jax.Array:
    """Relative switching error of adjacent formats of `table` (FLIQS, Eq. 5), mean over tensors: float32[K − 1]."""

    def tensor_difference(x: jax.Array) -> jax.Array:
        clip = calibration.absolute_max(x)
        quantized = jax.vmap(lambda row: gradients.straight_through(x, row, clip))(table)
        return jnp.sqrt(jnp.mean(jnp.square(jnp.diff(quantized, axis=0)), axis=1)) / calibration.root_mean_square(x)

    return jnp.mean(jax.lax.map(tensor_difference, x), axis=0)


@jax.jit
def clipping_errors(x: jax.Array, table: FormatTable) -> jax.Array:
    """Mean squared error of each format clipped at each percentile, mean over tensors: float32[K, 100]."""

    def tensor_difference(x: jax.Array) -> jax.Array:
        clips = jnp.percentile(jnp.abs(x), jnp.arange(1, 101))

        def error(row: FormatTable, clip: jax.Array) -> jax.Array:
            return jnp.mean(jnp.square(gradients.straight_through(x, row, clip) - x))

        return jax.vmap(jax.vmap(error, (None, 0)), (0, None))(table, clips)

    return jnp.mean(jax.lax.map(tensor_difference, x), axis=0)


@jax.jit
def relative_errors(x: jax.Array, table: FormatTable) -> jax.Array:
    """Relative error of each format with its clip multiple, mean over tensors: float32[K]."""

    def tensor_difference(x: jax.Array) -> jax.Array:
        error = jax.vmap(lambda row: calibration.clipped_error(x, row, row.clip_multiple))(table)
        return jnp.sqrt(error) / calibration.root_mean_square(x)

    return jnp.mean(jax.lax.map(tensor_difference, x), axis=0)


def exponential_fit(x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Least-squares fit A · exp(−B x) + C with A, B, C ≥ 0 (FLIQS, A.8), and its coefficient of determination."""

    def curve(x: np.ndarray, a: float, b: float, c: float) -> np.ndarray:
        return a * np.exp(-b * x) + c

    fitted = optimize.curve_fit(curve, x, y, p0=(2 * y[0], 0.7, 0.0), bounds=(0, np.inf))[0]
    explained = 1 - np.var(y - curve(x, *fitted)) / np.var(y)
    return {name: float(value) for name, value in zip("ABC", fitted, strict=True)} | {"r_squared": float(explained)}


def measure(distribution: str) -> dict[str, Any]:
    """All three measurements for one distribution."""
    integers = rows([f"int{bits}" for bits in BITS])
    switching = np.asarray(switching_errors(tensors(distribution, 1000), integers))
    clipping = np.asarray(clipping_errors(tensors(distribution, 100), integers))
    multiples = clip_multiples.precomputed_multiples([parse_format(name) for name in FP8], distribution)
    fp8 = relative_errors(tensors(distribution, 100), rows(list(FP8), list(multiples)))
    return {
        "switching_error": {f"{bits}-{bits + 1}": float(e) for bits, e in zip(BITS, switching, strict=False)},
        "switching_error_fit": exponential_fit(np.asarray(BITS[:-1], float), switching.astype(float)),
        "best_percentile": {str(bits): int(p) + 1 for bits, p in zip(BITS, clipping.argmin(1), strict=True)},
        "fp8_relative_error": {name: float(e) for name, e in zip(FP8, fp8, strict=True)},
    }


def draw(results: dict[str, dict[str, Any]]) -> None:
    """Draws the three pictures."""
    bits = list(BITS)
    pictures.write(
        "switching_error.svg",
        charts.lines(
            {name: (bits[:-1], list(r["switching_error"].values())) for name, r in results.items()},
            xlabel="bits k (switching to k + 1)",
            ylabel="switching error / root mean square",
            log=True,
        ),
    )
    pictures.write(
        "clipping_percentile.svg",
        charts.lines(
            {name: (bits, list(r["best_percentile"].values())) for name, r in results.items()},
            xlabel="bits",
            ylabel="best clipping percentile",
        ),
    )
    pictures.write(
        "fp8_error.svg",
        charts.lines(
            {name: (list(FP8), [100 * e for e in r["fp8_relative_error"].values()]) for name, r in results.items()},
            xlabel="8-bit float",
            ylabel="relative error (%)",
            log=True,
        ),
    )


def main() -> None:
    """Measures, stores, draws and prints."""
    results = {distribution: measure(distribution) for distribution in DISTRIBUTIONS}
    document = {"command": "python -m benchmarks.tensor_error", "values_per_tensor": VALUES, "distributions": results}
    RESULTS.write_text(json.dumps(document, indent=1) + "\n")
    draw(results)
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
