"""Statistics, calibrators and the search for multiples, each against NumPy or a property that it must have."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aqt_like import calibration, gradients
from aqt_like.formats import format_table, parse_format

CALIBRATORS = calibration.CALIBRATORS
NAMES = ["int4", "int8", "e2m1", "e4m3"]


def row_of(name):
    return format_table([parse_format(name)], [1.0]).row(0)


def batches(count=3, size=4000, seed=0):
    return jax.random.normal(jax.random.key(seed), (count, size)) * jnp.arange(1.0, count + 1)[:, None]


def after(calibrator, tensors):
    state = calibrator.init()
    for x in tensors:
        state = calibrator.update(state, x)
    return state


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
        (calibration.percentile(70), lambda a, axes: np.percentile(np.abs(a), 70, axis=axes)),
        (calibration.root_mean_square, lambda a, axes: np.sqrt(np.mean(np.square(a), axis=axes))),
    ):
        np.testing.assert_allclose(statistic(x, None), expected(x, None), rtol=1e-6)
        found = statistic(x, (0, 2))
        assert found.shape == (1, 4, 1)
        np.testing.assert_allclose(found[0, :, 0], expected(x, (0, 2)), rtol=1e-6)
    with pytest.raises(ValueError, match="percentile 101"):
        calibration.percentile(101)


@pytest.mark.parametrize("name", CALIBRATORS)
def test_conformance_under_jit_scan_and_vmap(name):
    calibrator, data = CALIBRATORS[name], batches()
    chex.clear_trace_counter()
    update = jax.jit(chex.assert_max_traces(calibrator.update, n=1))
    state = calibrator.init()
    for x in data:
        state = update(state, x)
    scanned, _ = jax.lax.scan(lambda s, x: (calibrator.update(s, x), None), calibrator.init(), data)
    chex.assert_trees_all_close(scanned, state, rtol=1e-6)

    table = format_table([parse_format(n) for n in NAMES], [1.0] * len(NAMES))
    clips = jax.vmap(calibrator.clip, (None, 0))(state, table)
    one = jax.jit(calibrator.clip)
    np.testing.assert_allclose(clips, [one(state, table.row(k)) for k in range(len(NAMES))], rtol=1e-6)
    assert clips.shape == (len(NAMES),)
    assert (clips > 0).all()
    assert (clips <= 2 * jnp.abs(data).max()).all()


@pytest.mark.parametrize("name", CALIBRATORS)
def test_thresholds_scale_with_the_data(name):
    calibrator, data = CALIBRATORS[name], batches()
    for format_name in NAMES:
        clip = calibrator.clip(after(calibrator, data), row_of(format_name))
        grown = calibrator.clip(after(calibrator, data * 16), row_of(format_name))
        np.testing.assert_allclose(grown, 16 * clip, rtol=1e-6)


@pytest.mark.parametrize("name", CALIBRATORS)
def test_nothing_seen_and_zeros_give_a_threshold_of_zero(name):
    calibrator = CALIBRATORS[name]
    assert calibrator.clip(calibrator.init(), row_of("int4")) == 0
    assert calibrator.clip(after(calibrator, [jnp.zeros(5)]), row_of("int4")) == 0


def test_running_average_is_the_mean_at_first_and_exponential_later():
    average = calibration.RunningAverage.empty()
    for value in (3.0, 1.0, 2.0):
        average = average.update(jnp.float32(value))
    np.testing.assert_allclose(average.value, 2.0, rtol=1e-6)
    for _ in range(200):
        average = average.update(jnp.float32(1.0))
    np.testing.assert_allclose(average.update(jnp.float32(2.0)).value - average.value, 0.05, rtol=1e-2)


def test_histogram_counts_magnitudes_whatever_the_order():
    data = [batches()[0], 100 * batches()[1], jnp.asarray([0.0, np.inf, np.nan, 3.0])]
    up, down = after(CALIBRATORS["least_squares"], data), after(CALIBRATORS["least_squares"], data[::-1])
    chex.assert_trees_all_equal(up, down)
    magnitudes = np.abs(np.concatenate(data))
    magnitudes = magnitudes[np.isfinite(magnitudes) & (magnitudes > 0)]
    top = 2.0 ** int(up.exponent)
    assert top / 2 <= magnitudes.max() < top
    np.testing.assert_array_equal(up.counts, np.histogram(magnitudes, 2048, (0, top))[0])


@pytest.mark.parametrize("name", ["int3", "int4", "int6", "e2m1", "e3m2"])
def test_least_squares_of_the_histogram_is_that_of_the_tensor(name):
    x = batches(1, 50000)[0]
    row = row_of(name)
    clip = CALIBRATORS["least_squares"].clip(after(CALIBRATORS["least_squares"], [x]), row)
    best = calibration.best_multiples(x, format_table([parse_format(name)], [1.0]))[0]

    def error(threshold):
        return np.mean(np.square(gradients.straight_through(x, row, threshold) - x))

    assert error(clip) <= 1.005 * error(best * calibration.root_mean_square(x))


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
    seen = calibration.Histogram.empty().update(batches(1, 3000)[0])
    expected = divergence_by_loops(np.asarray(seen.counts), 7, bins)
    found = calibration.divergence(seen, row_of("int4"), jnp.asarray(bins))
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_too_few_bins_tell_nothing():
    seen = calibration.Histogram.empty().update(batches(1)[0])
    assert calibration.divergence(seen, row_of("int8"), jnp.asarray(100)) == np.inf
    assert np.isfinite(calibration.divergence(seen, row_of("int8"), jnp.asarray(128)))


def test_least_divergence_cuts_the_tail_that_least_squares_keeps():
    """What KL calibration is known for: outliers pull it less."""
    x = jnp.concatenate([batches(1, 20000)[0], jnp.full(20, 30.0)])
    clips = {n: CALIBRATORS[n].clip(after(CALIBRATORS[n], [x]), row_of("int8")) for n in CALIBRATORS}
    assert clips["least_divergence"] < clips["least_squares"] < 1.05 * clips["running_max"]
