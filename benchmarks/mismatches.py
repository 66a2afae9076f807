"""Exactness of emulated small floats: ours, AQT's and `lax.reduce_precision`.

Normally distributed values, with a standard deviation of a third of the largest value of the format, are rounded by us,
by the floating-point numerics of AQT v2 (aqtp 0.9, which first rounds to bfloat16) and by `lax.reduce_precision`. A
mismatch is a result that is not the nearest value, ties to even, of the format's grid, which is enumerated in NumPy
float64. AQT's smallest normal number is 1, so its inputs are scaled accordingly. `lax.reduce_precision` has IEEE
semantics (the highest exponent is infinity), so values beyond its range are excluded for it.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from aqt_like import numerics
from aqt_like.formats import Format, format_table, parse_format

FORMATS = ("e2m1", "e2m3", "e3m2", "e1m4", "e3m1", "e2m2", "e1m3", "e4m1", "e3m4", "e4m3", "e5m2")
VALUES = 2**20

Rounding = Callable[[np.ndarray], np.ndarray]


def nearest(x: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Nearest values of an ascending `grid` of magnitudes, ties to even positions, saturating: float64, shape of x."""
    magnitude = np.minimum(np.abs(x.astype(np.float64)), grid[-1])
    upper = np.clip(np.searchsorted(grid, magnitude), 1, len(grid) - 1)
    below, above = magnitude - grid[upper - 1], grid[upper] - magnitude
    up = (above < below) | ((above == below) & (upper % 2 == 0))
    return np.copysign(np.where(up, grid[upper], grid[upper - 1]), x)


def ours(fmt: Format) -> Rounding:
    """Rounding by `numerics.round_to_grid`."""
    row = format_table([fmt], [1.0]).row(0)
    return lambda x: np.asarray(jax.jit(numerics.round_to_grid)(x, row))


def aqt(fmt: Format) -> Rounding:
    """Rounding by AQT's `FpNumerics`, at its own scale."""
    from aqt.jax.v2 import utils
    from aqt.jax.v2.numerics import fp_numerics

    config = fp_numerics.FpNumericsConfig(
        nexp=int(fmt.name[1]), minexp=0, nmant=fmt.mantissa_bits, has_subnormals=True, has_two_nan=False,
        has_naninf=False, radix=2,
    )  # fmt: skip
    unit = 2.0**fmt.smallest_exponent  # its smallest normal number is 1
    fp = fp_numerics.FpNumerics(cfg=config)
    context = utils.Context(key=None, train_step=None)
    return lambda x: np.asarray(fp.vjp_fwd(jnp.asarray(x / unit), context)[0], np.float32) * np.float32(unit)


def reduce_precision(fmt: Format) -> Rounding:
    """Rounding by `lax.reduce_precision` with the same numbers of exponent and mantissa bits."""
    exponent_bits = int(fmt.name[1])
    return lambda x: np.asarray(jax.lax.reduce_precision(x, exponent_bits, fmt.mantissa_bits))


def share_of_mismatches(fmt: Format, rounding: Rounding, largest: float) -> float:
    """Fraction of the values up to `largest` that `rounding` does not round to the nearest value of the format."""
    x = (np.random.default_rng(0).standard_normal(VALUES) * fmt.largest / 3).astype(np.float32)
    x = x[np.abs(x) <= largest]
    return float(np.mean(rounding(x) != nearest(x, fmt.magnitudes())))


def measure() -> dict[str, dict[str, float]]:
    """Fractions of mismatches by format and emulation."""
    table = {}
    for name in FORMATS:
        fmt = parse_format(name)
        magnitudes = fmt.magnitudes()
        ieee_largest = magnitudes[-(2**fmt.mantissa_bits) - 1]
        table[name] = {
            "ours": share_of_mismatches(fmt, ours(fmt), np.inf),
            "AQT v2": share_of_mismatches(fmt, aqt(fmt), np.inf),
            "lax.reduce_precision": share_of_mismatches(fmt, reduce_precision(fmt), ieee_largest),
        }
    return table
