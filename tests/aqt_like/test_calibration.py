"""Statistics, histograms and the search for multiples, each against NumPy or a property that it must have."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aqt_like import calibration, gradients
from aqt_like.formats import format_table, parse_format

NAMES = ["int4", "int8", "e2m1", "e4m3"]


def row_of(name):
    return format_table([parse_format(name)], [1.0]).row(0)


def html_table(names):
    return format_table([parse_format(name) for name in names], [1.0] * len(names))


def normal(size=4000, seed=0):
    return jax.random.normal(jax.random.key(seed), (size,))


def test_best_multiples_agree_with_a_search_in_numpy():
    x = np.random.default_rng(0).laplace(size=5000).astype(np.float32)
    space = [parse_format("int4"), parse_format("int6")]
    candidates = np.linspace(1, 8, 30, dtype=np.float32)
    found = calibration.best_multiples(x, format_table(space, [1, 1]), candidates)
    rms = np.sqrt(np.mean(np.square(x, dtype=np.float64)))
    for multiple, levels in zip(found, (7, 31), strict=True):
        steps = candidates[:, None] * rms / levels
        errors = np.mean((steps * np.clip(np.round(x / steps), -levels, levels) - x) ** 2, axis=1)
        assert multiple == candidates[np.argmin(errors)]


def test_root_mean_square_per_channel():
    x = jnp.asarray([[3.0, 0.0], [4.0, 2.0]])
    np.testing.assert_allclose(calibration.root_mean_square(x, (0,)), [[np.sqrt(12.5), np.sqrt(2)]], rtol=1e-6)


def test_statistics_keep_reduced_axes():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((3, 4, 5)), jnp.float32)
    for statistic, expected in (
        (calibration.absolute_max, lambda a, axes: np.max(np.abs(a), axis=axes)),
        (calibration.root_mean_square, lambda a, axes: np.sqrt(np.mean(np.square(a), axis=axes))),
    ):
        np.testing.assert_allclose(statistic(x, None), expected(x, None), rtol=1e-6)
        found = statistic(x, (0, 2))
        assert found.shape == (1, 4, 1)
        np.testing.assert_allclose(found[0, :, 0], expected(x, (0, 2)), rtol=1e-6)


@pytest.mark.parametrize("name", calibration.CRITERIA)
def test_criteria_give_a_multiple_for_every_format_in_one_program(name):
    criterion, x = calibration.CRITERIA[name], normal()
    chex.clear_trace_counter()
    compiled = jax.jit(chex.assert_max_traces(criterion, n=1))
    found = compiled(x, html_table(NAMES))
    np.testing.assert_allclose(
        compiled(3 + x, html_table(NAMES[::-1]))[::-1], criterion(3 + x, html_table(NAMES)), rtol=1e-6
    )
    assert found.shape == (len(NAMES),)
    assert (found > 0).all()
    assert (found * calibration.root_mean_square(x) <= 2 * jnp.abs(x).max()).all()


@pytest.mark.parametrize("name", calibration.CRITERIA)
def test_multiples_do_not_change_with_the_scale_of_the_data(name):
    criterion = jax.jit(calibration.CRITERIA[name])
    np.testing.assert_allclose(
        criterion(normal() * 16, html_table(NAMES)), criterion(normal(), html_table(NAMES)), rtol=1e-6
    )


def test_zeros_have_a_threshold_of_zero():
    np.testing.assert_array_equal(calibration.least_divergent_multiples(jnp.zeros(5), html_table(NAMES)), 0)


def test_running_average_is_the_mean_at_first_and_exponential_later():
    average = calibration.RunningAverage(jnp.zeros(()), jnp.zeros((), jnp.int32))
    for value in (3.0, 1.0, 2.0):
        average = average.update(jnp.float32(value))
    np.testing.assert_allclose(average.value, 2.0, rtol=1e-6)
    for _ in range(200):
        average = average.update(jnp.float32(1.0))
    np.testing.assert_allclose(average.update(jnp.float32(2.0)).value - average.value, 0.05, rtol=1e-2)


def test_histogram_counts_magnitudes():
    data = jnp.concatenate([normal(), 100 * normal(seed=1), jnp.asarray([0.0, np.inf, np.nan, 3.0])])
    seen = calibration.Histogram.from_values(data)
    magnitudes = np.abs(data)
    magnitudes = magnitudes[np.isfinite(magnitudes) & (magnitudes > 0)]
    top = 2.0 ** int(seen.exponent)
    assert top / 2 <= magnitudes.max() < top
    np.testing.assert_array_equal(seen.counts, np.histogram(magnitudes, 2048, (0, top))[0])


def divergence_by_loops(counts, levels, bins):
    """TensorRT's threshold criterion for an integer grid, bin by bin."""
    p = counts[:bins].astype(float)
    last = max(i for i in range(bins) if p[i])
    reference = p.copy()
    reference[last] += counts[bins:].sum()
    told = np.zeros(bins)
    step = bins / levels
    code = [round((i + 0.5) / step) for i in range(bins)]  # halves to even, as the quantiser
    for level in set(code):
        members = [i for i in range(bins) if code[i] == level and p[i]]
        for i in members:
            told[i] = p[members].sum() / len(members)
    reference, told = reference / reference.sum(), told / told.sum()
    return sum(r * np.log(r / t) for r, t in zip(reference, told, strict=True) if r)


@pytest.mark.parametrize("bins", [100, 640, 1537, 2048])
def test_divergence_is_that_of_the_loops(bins):
    seen = calibration.Histogram.from_values(normal(3000))
    expected = divergence_by_loops(np.asarray(seen.counts), 7, bins)
    found = calibration.divergence(seen, row_of("int4"), jnp.asarray(bins))
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_too_few_bins_tell_nothing():
    seen = calibration.Histogram.from_values(normal())
    assert calibration.divergence(seen, row_of("int8"), jnp.asarray(100)) == np.inf
    assert np.isfinite(calibration.divergence(seen, row_of("int8"), jnp.asarray(128)))


@pytest.mark.parametrize("count", [60, 100, 400])
def test_few_values_are_not_all_clipped_to_the_smallest_of_them(count):
    """A bin alone agrees with itself, so it would tell no divergence."""
    x, names = normal(count), ["int2", "int8"]
    for name, multiple in zip(names, calibration.least_divergent_multiples(x, html_table(names)), strict=True):
        assert multiple > 1, name
        assert calibration.clipped_error(x, row_of(name), multiple) < 1


def test_an_outlier_far_away_does_not_set_the_threshold():
    x = jnp.append(normal(20000), 300.0)
    multiple = calibration.least_divergent_multiples(x, html_table(["int8"]))[0]
    assert multiple * calibration.root_mean_square(x) < 50


def test_least_divergence_cuts_the_tail_that_least_squares_keeps():
    """What KL calibration is known for: outliers pull it less."""
    x = jnp.concatenate([normal(20000), jnp.full(20, 30.0)])
    divergent = calibration.least_divergent_multiples(x, html_table(["int8"]))[0]
    squares = calibration.best_multiples(x, html_table(["int8"]))[0]
    assert divergent < squares < 1.05 * calibration.absolute_max(x) / calibration.root_mean_square(x)


def test_least_divergence_at_two_bits_leaves_most_weights_zero():
    """It keeps the tail of a Gaussian at any number of bits: APQ's fewest are 4."""
    x = normal(20000)
    multiple = calibration.least_divergent_multiples(x, html_table(["int2"]))[0]
    quantised = gradients.straight_through(x, row_of("int2"), multiple * calibration.root_mean_square(x))
    assert np.mean(quantised == 0) > 0.8
    assert calibration.best_multiples(x, html_table(["int2"]))[0] < multiple / 2


@pytest.mark.parametrize("name", ["int3", "int4", "int6", "e2m1", "e3m2"])
def test_least_divergence_is_the_least_of_the_candidates(name):
    x, row = normal(50000), row_of(name)
    seen = calibration.Histogram.from_values(x)
    clip = calibration.least_divergent_multiples(x, html_table([name]))[0] * calibration.root_mean_square(x)
    bins = round(float(clip / seen.width))
    found, *others = (calibration.divergence(seen, row, jnp.asarray(b)) for b in (bins, bins // 2, min(2 * bins, 2048)))
    assert all(found <= other for other in others)


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.int32, np.float16])
def test_statistics_of_integers_do_not_wrap(kind):
    x = np.random.default_rng(0).integers(-128, 128, 500) + 128 * (kind == np.uint8)
    x[0] = x.min()
    own, expected = jnp.asarray(x, kind), np.abs(x).astype(float)
    np.testing.assert_allclose(calibration.root_mean_square(own), np.sqrt(np.mean(expected**2)), rtol=1e-6)
    assert calibration.absolute_max(own) == expected.max()
    np.testing.assert_array_equal(
        calibration.Histogram.from_values(own).counts, calibration.Histogram.from_values(jnp.float32(own)).counts
    )
