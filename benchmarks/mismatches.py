"""How often other emulations of small floats differ from the exact grid.

The same normal values, scaled to a third of each format's range, are rounded by us, by AQT's v2 floating-point numerics
(aqtp 0.9, which rounds to bfloat16 first) and by `lax.reduce_precision`; a value counts where the result is not the
nearest one of the format, ties to even, of its grid enumerated in NumPy float64. AQT's smallest normal number is 1, so
it gets the values on that scale; `lax.reduce_precision` has IEEE semantics (the highest exponent is infinity), so
values that only our grids reach are left out for it.
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
    """The nearest value of an ascending `grid` of magnitudes, ties to the even position, saturating; float64."""
    magnitude = np.minimum(np.abs(x.astype(np.float64)), grid[-1])
    upper = np.clip(np.searchsorted(grid, magnitude), 1, len(grid) - 1)
    below, above = magnitude - grid[upper - 1], grid[upper] - magnitude
    up = (above < below) | ((above == below) & (upper % 2 == 0))
    return np.copysign(np.where(up, grid[upper], grid[upper - 1]), x)


def ours(fmt: Format) -> Rounding:
    """`numerics.round_to_grid`."""
    row = format_table([fmt], [1.0]).row(0)
    return lambda x: np.asarray(jax.jit(numerics.round_to_grid)(x, row))


def aqt(fmt: Format) -> Rounding:
    """AQT's `FpNumerics`, on its own scale."""
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
    """`lax.reduce_precision` with the same numbers of exponent and mantissa bits."""
    exponent_bits = int(fmt.name[1])
    return lambda x: np.asarray(jax.lax.reduce_precision(x, exponent_bits, fmt.mantissa_bits))


def share_of_mismatches(fmt: Format, rounding: Rounding, largest: float) -> float:
    """The share of values up to `largest` that `rounding` does not take to the nearest of the format."""
    x = (np.random.default_rng(0).standard_normal(VALUES) * fmt.largest / 3).astype(np.float32)
    x = x[np.abs(x) <= largest]
    return float(np.mean(rounding(x) != nearest(x, fmt.magnitudes())))


def measure() -> dict[str, dict[str, float]]:
    """Shares of mismatches, by format and emulation."""
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
