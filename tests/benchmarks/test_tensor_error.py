"""The analysis against the same, written in NumPy for integers."""

import numpy as np

from benchmarks import tensor_error


def int_quantize(x, bits, clip):
    levels = 2 ** (bits - 1) - 1
    return np.clip(np.round(x / clip * levels), -levels, levels) * clip / levels


def test_switching_and_clipping_errors():
    x = np.asarray(tensor_error.tensors("laplacian-1:10", 3), np.float64)
    table = tensor_error.rows(["int3", "int4", "int5"])
    rms = np.sqrt(np.mean(x**2, axis=1))
    expected = [
        np.mean([
            np.sqrt(np.mean((int_quantize(t, k + 1, np.abs(t).max()) - int_quantize(t, k, np.abs(t).max())) ** 2)) / r
            for t, r in zip(x, rms, strict=True)
        ])
        for k in (3, 4)
    ]  # fmt: skip
    found = tensor_error.switching_errors(x.astype(np.float32), table)
    np.testing.assert_allclose(found, expected, rtol=1e-3)

    found = np.asarray(tensor_error.clipping_errors(x.astype(np.float32), table))
    assert found.shape == (3, 100)
    for percent in (50, 90, 100):
        expected = np.mean([
            np.mean((int_quantize(t, 4, np.percentile(np.abs(t), percent)) - t) ** 2) for t in x
        ])  # fmt: skip
        np.testing.assert_allclose(found[1, percent - 1], expected, rtol=2e-3)


def test_outliers_are_three_times_the_largest():
    clean, outliers = (np.abs(tensor_error.tensors(d, 2)) for d in ("gaussian", "gaussian-1:100"))
    changed = clean != outliers
    assert 0.005 < changed.mean() < 0.015
    np.testing.assert_allclose(outliers.max(1), 3 * clean.max(1), rtol=1e-6)


def test_fit_recovers_an_exponential():
    x = np.arange(2.0, 8.0)
    fit = tensor_error.exponential_fit(x, 4 * np.exp(-0.8 * x) + 0.1)
    np.testing.assert_allclose([fit["A"], fit["B"], fit["C"], fit["r_squared"]], [4, 0.8, 0.1, 1], rtol=1e-4)
