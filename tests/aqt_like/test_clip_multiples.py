"""The stored table of clip multiples."""

import itertools

import numpy as np
import pytest
from scipy import integrate, stats

from aqt_like import clip_multiples, numerics
from aqt_like.formats import FORMAT_SPACES, format_space, format_table, parse_format


def gaussian_integer_error(levels, clip):
    """Expected squared error of a symmetric integer quantiser on a unit Gaussian, by numerical integration."""
    step = clip / levels

    def error(x):
        return (x - step * np.clip(np.round(x / step), -levels, levels)) ** 2 * stats.norm.pdf(x)

    edges = np.concatenate([[0], (np.arange(levels) + 0.5) * step, [clip, clip + 8]])
    return 2 * sum(integrate.quad(error, a, b)[0] for a, b in itertools.pairwise(edges) if b > a)


@pytest.mark.parametrize("bits", [3, 4, 5, 6])
def test_stored_multiples_minimise_the_integrated_error(bits):
    stored = clip_multiples.precomputed_multiples([parse_format(f"int{bits}")])[0]
    levels = 2 ** (bits - 1) - 1
    candidates = np.linspace(1, 6, 101)
    best = min(gaussian_integer_error(levels, c) for c in candidates)
    assert gaussian_integer_error(levels, stored) <= 1.01 * best


def test_more_bits_reach_further_and_unscaled_formats_have_no_multiple():
    names = ["int3", "int4", "int5", "int6", "int7", "int8"]
    multiples = clip_multiples.precomputed_multiples([parse_format(n) for n in names])
    assert list(multiples) == sorted(multiples)
    assert clip_multiples.precomputed_multiples([parse_format("bf16")]) == (1.0,)
    for distribution in clip_multiples.DISTRIBUTIONS:
        for space in FORMAT_SPACES:
            members = format_space(space)
            clip_multiples.precomputed_multiples([*members, *(f.unsigned_twin for f in members)], distribution)


@pytest.mark.parametrize("distribution", clip_multiples.DISTRIBUTIONS)
@pytest.mark.parametrize("name", ["int4", "uint4", "e2m1", "e4m3", "e1m0"])
def test_stored_multiples_are_best_on_the_sample(distribution, name):
    fmt = parse_format(name)
    sample = clip_multiples.quantiles(distribution).astype(np.float64)
    sample = np.maximum(sample, 0) if fmt.lowest == 0 else sample
    row = format_table([fmt], [1.0]).row(0)
    rms = np.sqrt(np.mean(sample**2))
    (stored,) = clip_multiples.precomputed_multiples([fmt], distribution)

    def error(multiple):
        scale = multiple * rms / fmt.largest
        return np.mean((np.asarray(numerics.round_to_grid(np.float32(sample / scale), row)) * scale - sample) ** 2)

    assert error(stored) <= 1.01 * min(error(stored * factor) for factor in (0.5, 0.8, 0.95, 1.05, 1.3, 2))


def test_outliers_are_as_the_paper_says():
    clean, outliers = clip_multiples.quantiles("laplacian"), clip_multiples.quantiles("laplacian-1:100")
    changed = clean != outliers
    assert changed.sum() == 655
    np.testing.assert_allclose(np.abs(outliers[changed]), 3 * clean.max())
    assert abs(outliers[changed].sum()) <= 3.01 * clean.max()  # as many below as above, but one


def test_errors_name_what_is_missing():
    with pytest.raises(ValueError, match=r"unknown distribution 'cauchy'.*gaussian, laplacian"):
        clip_multiples.precomputed_multiples([], "cauchy")
    with pytest.raises(ValueError, match="no clip multiple for int16"):
        clip_multiples.precomputed_multiples([parse_format("int16")])
