import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from aqt_like import calibration, formats


def gaussian_integer_error(levels, clip):
    """Expected squared error of a symmetric integer quantiser on a unit Gaussian, by numerical integration."""
    step = clip / levels

    def error(x):
        return (x - step * np.clip(np.round(x / step), -levels, levels)) ** 2 * stats.norm.pdf(x)

    edges = np.concatenate([[0], (np.arange(levels) + 0.5) * step, [clip, clip + 8]])
    return 2 * sum(integrate.quad(error, a, b)[0] for a, b in itertools.pairwise(edges) if b > a)


@pytest.mark.parametrize("bits", [3, 4, 5, 6])
def test_stored_multiples_minimise_the_integrated_error(bits):
    stored = calibration.precomputed_multiples([formats.parse(f"int{bits}")])[0]
    levels = 2 ** (bits - 1) - 1
    candidates = np.linspace(1, 6, 101)
    best = min(gaussian_integer_error(levels, c) for c in candidates)
    assert gaussian_integer_error(levels, stored) <= 1.01 * best


def test_more_bits_reach_further_and_unscaled_formats_have_no_multiple():
    names = ["int3", "int4", "int5", "int6", "int7", "int8"]
    multiples = calibration.precomputed_multiples([formats.parse(n) for n in names])
    assert list(multiples) == sorted(multiples)
    assert calibration.precomputed_multiples([formats.parse("bf16")]) == (1.0,)
    for distribution in calibration.DISTRIBUTIONS:
        for space in formats.FORMAT_SPACES:
            members = formats.format_space(space)
            calibration.precomputed_multiples([*members, *(f.unsigned_twin for f in members)], distribution)


def test_best_multiples_agree_with_a_search_in_numpy():
    x = np.random.default_rng(0).laplace(size=5000).astype(np.float32)
    space = [formats.parse("int4"), formats.parse("int6")]
    candidates = np.linspace(1, 8, 30, dtype=np.float32)
    found = calibration.best_multiples(x, formats.format_table(space, [1, 1]), candidates)
    rms = np.sqrt(np.mean(np.square(x, dtype=np.float64)))
    for multiple, levels in zip(found, (7, 31), strict=True):
        steps = candidates[:, None] * rms / levels
        errors = np.mean((steps * np.clip(np.round(x / steps), -levels, levels) - x) ** 2, axis=1)
        assert multiple == candidates[np.argmin(errors)]


def test_errors_name_what_is_missing():
    with pytest.raises(ValueError, match=r"unknown distribution 'cauchy'.*gaussian, laplacian"):
        calibration.precomputed_multiples([], "cauchy")
    with pytest.raises(ValueError, match="no clip multiple for int16"):
        calibration.precomputed_multiples([formats.parse("int16")])


def test_root_mean_square_per_channel():
    x = jnp.asarray([[3.0, 0.0], [4.0, 2.0]])
    np.testing.assert_allclose(calibration.root_mean_square(x, (0,)), [[np.sqrt(12.5), np.sqrt(2)]], rtol=1e-6)
