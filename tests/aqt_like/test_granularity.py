"""Granularities, scale rules and block formats against loops in NumPy."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import aqt_like
from aqt_like import calibration, gradients, granularity, numerics
from aqt_like.formats import format_table, parse_format


def row_of(name):
    return format_table([parse_format(name)], [1.0]).row(0)


def tensor(shape, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) * np.exp(rng.uniform(-6, 6, shape))).astype(np.float32)


def test_per_tensor_and_per_channel():
    x = tensor((3, 4, 5))
    np.testing.assert_array_equal(granularity.per_tensor(x, calibration.absolute_max), np.abs(x).max())
    by_channel = granularity.per_channel(-1)(x, calibration.absolute_max)
    np.testing.assert_array_equal(by_channel, np.abs(x).max((0, 1), keepdims=True))
    by_two = granularity.per_channel(0, -2)(x, calibration.absolute_max)
    np.testing.assert_array_equal(by_two, np.abs(x).max(2, keepdims=True))
    with pytest.raises(ValueError, match=r"no axis 3 in a tensor of shape \(3, 4, 5\)"):
        granularity.per_channel(3)(x, calibration.absolute_max)


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("size", [1, 4, 6, 100])
def test_per_block_with_a_shorter_last_one(axis, size):
    x = tensor((6, 7, 13))
    found = granularity.per_block(size, axis)(x, calibration.root_mean_square)
    expected = np.empty_like(x)
    moved, out = np.moveaxis(x, axis, 0), np.moveaxis(expected, axis, 0)
    for start in range(0, len(moved), size):
        out[start : start + size] = np.sqrt(np.mean(moved[start : start + size] ** 2, axis=0, keepdims=True))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    blocks = granularity.per_block(size, axis).thresholds(x, calibration.absolute_max)
    assert blocks.shape[axis] == -(-x.shape[axis] // size)


def test_block_errors():
    with pytest.raises(ValueError, match="blocks of 0 values"):
        granularity.per_block(0, -1)
    with pytest.raises(ValueError, match="no axis 2"):
        aqt_like.quantize_blocks(tensor((4, 4)), "mxfp4", axis=2)
    with pytest.raises(ValueError, match=r"unknown block format 'mxfp5'.*mxfp4"):
        aqt_like.quantize_blocks(tensor((4, 4)), "mxfp5")


@pytest.mark.parametrize("name", ["e2m1", "e4m3fn", "int8", "e5m2ieee"])
def test_powers_of_two(name):
    largest = parse_format(name).largest
    clip = np.abs(tensor((1000,))) + 1e-9
    floor = np.asarray(granularity.power_of_two(clip, row_of(name))) / largest
    np.testing.assert_array_equal(floor, 2.0 ** (np.floor(np.log2(clip)) - np.floor(np.log2(largest))))
    free = np.asarray(granularity.saturation_free_power_of_two(clip, row_of(name))) / largest
    np.testing.assert_array_equal(free, 2.0 ** np.ceil(np.log2(clip.astype(np.float64) / largest)))
    assert granularity.power_of_two(jnp.zeros(()), row_of(name)) == 0
    np.testing.assert_array_equal(numerics.scale_for(row_of(name), jnp.asarray(floor * largest)), floor)


ELEMENTS = {
    "mxfp8_e4m3": ml_dtypes.float8_e4m3fn,
    "mxfp8_e5m2": ml_dtypes.float8_e5m2,
    "mxfp6_e2m3": ml_dtypes.float6_e2m3fn,
    "mxfp6_e3m2": ml_dtypes.float6_e3m2fn,
    "mxfp4": ml_dtypes.float4_e2m1fn,
}


@pytest.mark.parametrize("name", ELEMENTS)
def test_mx_formats_follow_the_specification(name):
    """OCP MX v1.0, §6.3, block by block, with ml_dtypes as the element type."""
    x = tensor((5, 96))
    largest = float(ml_dtypes.finfo(ELEMENTS[name]).max)
    largest_exponent = np.floor(np.log2(largest))
    expected = np.empty_like(x)
    for i in range(5):
        for start in range(0, 96, 32):
            block = x[i, start : start + 32]
            scale = 2.0 ** (np.floor(np.log2(np.abs(block).max())) - largest_exponent)
            clipped = np.clip(block / scale, -largest, largest)
            expected[i, start : start + 32] = clipped.astype(ELEMENTS[name]).astype(np.float32) * scale
    np.testing.assert_array_equal(jax.jit(lambda x: aqt_like.quantize_blocks(x, name))(x), expected)
    np.testing.assert_array_equal(aqt_like.quantize_blocks(x.T, name, axis=0).T, expected)


def test_nvfp4_scales_are_fp8_codes_times_one_for_the_tensor():
    x = tensor((4, 64))
    unit = np.float32(np.abs(x).max() / 6) / np.float32(448)
    expected = np.empty_like(x)
    for i in range(4):
        for start in range(0, 64, 16):
            block = x[i, start : start + 16]
            code = np.maximum((np.float32(np.abs(block).max() / 6) / unit).astype(ml_dtypes.float8_e4m3fn), 2.0**-9)
            scale = code.astype(np.float32) * unit
            clipped = np.clip(block / scale, -6, 6)
            expected[i, start : start + 16] = clipped.astype(ml_dtypes.float4_e2m1fn).astype(np.float32) * scale
    np.testing.assert_allclose(aqt_like.quantize_blocks(x, "nvfp4"), expected, rtol=1e-6)
    np.testing.assert_array_equal(aqt_like.quantize_blocks(np.zeros((2, 16)), "nvfp4"), np.zeros((2, 16)))


@pytest.mark.parametrize("name", granularity.BLOCK_FORMATS)
def test_block_formats_keep_what_they_hold_and_beat_one_scale(name):
    x = tensor((8, 128))
    once = aqt_like.quantize_blocks(x, name)
    np.testing.assert_allclose(aqt_like.quantize_blocks(once, name), once, rtol=1e-6)
    block = granularity.BLOCK_FORMATS[name]
    assert block.bits == {32: 0.25, 16: 0.5}[block.size] + parse_format(block.element).bits
    # A relative error matters to small values too, which one scale for all flushes to zero.
    one_scale = aqt_like.quantize(x, block.element)
    assert np.mean(once == 0) <= np.mean(one_scale == 0)
    relative = [np.mean(np.abs(y - x) / np.abs(x)) for y in (once, one_scale)]
    assert relative[0] < 1.02 * relative[1]


def test_traced_formats_share_the_machinery():
    """One compiled function, whose format, and so whose scale, is an argument."""
    names = ["e2m1", "e2m3", "e4m3fn", "int8"]
    table = format_table([parse_format(n) for n in names], [1.0] * 4)
    clipping = granularity.Clipping(calibration.absolute_max, granularity.per_block(32, -1), granularity.power_of_two)
    x = jnp.asarray(tensor((4, 64)))
    quantize = jax.jit(lambda row: gradients.straight_through(x, row, clipping(x, row)))
    for k, name in enumerate(["mxfp4", "mxfp6_e2m3", "mxfp8_e4m3", "mxint8"]):
        np.testing.assert_array_equal(quantize(table.row(k)), aqt_like.quantize_blocks(x, name))
    assert quantize._cache_size() == 1


@pytest.mark.parametrize("name", ["mxfp4", "nvfp4"])
def test_block_formats_of_empty_tensors_are_empty(name):
    for shape in ((4, 0), (0, 40)):
        assert jax.eval_shape(lambda x: aqt_like.quantize_blocks(x, name), np.zeros(shape)).shape == shape


@pytest.mark.parametrize("name", ["mxfp4", "mxfp8_e5m2", "mxint8", "nvfp4"])
def test_block_formats_hold_tiny_and_huge_values(name):
    """To within the coarsest step of the formats, or a few smallest normals of float32."""
    quantize = jax.jit(lambda x: aqt_like.quantize_blocks(x, name))
    for size in (1e-37, 1e-30, 3.4028235e38):
        x = np.asarray([[size, -size / 3, 0, size / 2]], np.float32)
        np.testing.assert_allclose(quantize(x), x, rtol=0.26, atol=4 * 2.0**-126)
    free = granularity.saturation_free_power_of_two(jnp.float32(3e38), row_of("e2m1"))
    assert free == 6 * 2.0**125
