"""The quantiser against grids enumerated in NumPy float64, which share no code with it."""

import chex
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import aqt_like
from aqt_like import numerics
from aqt_like.formats import UnknownFormatError, format_table, parse_format

INTEGERS = [f"{sign}int{bits}" for sign in ("", "u") for bits in range(2, 17)]
FLOATS = [f"e{e}m{m}" for e in range(1, 8) for m in range(8) if 2 <= 1 + e + m <= 9]


def row_of(name):
    return format_table([parse_format(name)], [1.0]).row(0)


RESERVED = ["e4m3fn", "e4m3ieee", "e5m2ieee", "e3m4ieee"]


def grid_of(name):
    """All non-negative values of a format, ascending, code by code."""
    if name.endswith("fn"):
        return grid_of(name[:-2])[:-1]
    if name.endswith("ieee"):
        return grid_of(name[:-4])[: -(2 ** int(name[3]))]
    if "int" in name:
        bits = int(name.split("int")[1])
        return np.arange(2.0 ** (bits if name[0] == "u" else bits - 1))
    exponent_bits, mantissa_bits = (int(part) for part in name[1:].split("m"))
    bias = 2 ** (exponent_bits - 1) - 1
    values = []
    for code in range(2 ** (exponent_bits + mantissa_bits)):
        exponent, fraction = divmod(code, 2**mantissa_bits)
        significand = fraction / 2**mantissa_bits
        values.append(
            significand * 2.0 ** (1 - bias) if exponent == 0 else (1 + significand) * 2.0 ** (exponent - bias)
        )
    return np.asarray(values)


def nearest_even(x, grid):
    """Round to the nearest grid point in float64; ties go to the even code, which is the even position."""
    upper = np.clip(np.searchsorted(grid, x), 1, len(grid) - 1)
    lower = upper - 1
    to_lower, to_upper = x - grid[lower], grid[upper] - x
    take_upper = (to_upper < to_lower) | ((to_upper == to_lower) & (upper % 2 == 0))
    return np.where(take_upper, grid[upper], grid[lower])


def probes(grid):
    """Codes, midpoints, and one float32 ulp to either side of each; beyond the largest; tiny values."""
    middle = (grid[1:] + grid[:-1]) / 2
    at = np.concatenate([grid, middle, [1.25 * grid[-1], 1e30, 1e-30, grid[1] / 3]]).astype(np.float32)
    return np.unique(np.concatenate([at, np.nextafter(at, np.float32(0)), np.nextafter(at, np.float32(np.inf))]))


@pytest.mark.parametrize("name", INTEGERS + FLOATS + RESERVED)
def test_every_code_midpoint_and_neighbour(name):
    grid = grid_of(name)
    x = probes(grid)
    quantize = jax.jit(numerics.round_to_grid)
    expected = nearest_even(np.minimum(x.astype(np.float64), grid[-1]), grid)
    np.testing.assert_array_equal(quantize(x, row_of(name)), expected)
    negative = np.zeros_like(expected) if name[0] == "u" else -expected
    np.testing.assert_array_equal(quantize(-x, row_of(name)), negative)


@pytest.mark.parametrize("name", [*INTEGERS[:4], "uint4", *FLOATS[:6], "e4m3", "bf16", "fp32"])
def test_special_values(name):
    fmt = parse_format(name)
    y = jax.jit(numerics.round_to_grid)(jnp.asarray([np.inf, -np.inf, np.nan, 0.0, -0.0, -1e-38]), row_of(name))
    assert y[0] == np.float32(fmt.largest)
    assert y[1] == np.float32(fmt.lowest)
    assert np.isnan(y[2])
    assert not np.signbit(y[3])
    if fmt.lowest < 0:
        assert np.signbit(y[4])
        assert np.signbit(y[5])


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("e4m3", ml_dtypes.float8_e4m3fn),
        ("e4m3fn", ml_dtypes.float8_e4m3fn),
        ("e4m3ieee", ml_dtypes.float8_e4m3),
        ("e5m2ieee", ml_dtypes.float8_e5m2),
        ("e3m4ieee", ml_dtypes.float8_e3m4),
        ("e5m2", ml_dtypes.float8_e5m2),
        ("e3m4", ml_dtypes.float8_e3m4),
        ("e2m1", ml_dtypes.float4_e2m1fn),
        ("e2m3", ml_dtypes.float6_e2m3fn),
        ("e3m2", ml_dtypes.float6_e3m2fn),
        ("bf16", ml_dtypes.bfloat16),
    ],
)
def test_agrees_with_ml_dtypes_within_its_finite_range(name, dtype):
    largest = float(ml_dtypes.finfo(dtype).max)
    rng = np.random.default_rng(0)
    x = (rng.standard_normal(20000) * np.exp(rng.uniform(-12, 12, 20000))).astype(np.float32)
    if name == "bf16":  # all of float32, its subnormals too
        anything = rng.integers(0, 2**32, 100000, dtype=np.uint32).view(np.float32)
        subnormal = rng.integers(0, 2**23, 100000, dtype=np.uint32).view(np.float32)
        x = np.concatenate([x, anything[np.isfinite(anything)], subnormal, -subnormal])
        np.testing.assert_array_equal(
            np.asarray(aqt_like.quantize(subnormal, "bf16")).view(np.uint32),
            subnormal.astype(dtype).astype(np.float32).view(np.uint32),
        )
    x = x[np.abs(x) <= largest]
    np.testing.assert_array_equal(jax.jit(numerics.round_to_grid)(x, row_of(name)), x.astype(dtype).astype(np.float32))


def test_fp32_is_the_identity():
    x = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    np.testing.assert_array_equal(numerics.round_to_grid(x, row_of("fp32")), x)


FAST_MATH = {
    "xla_cpu_use_fusion_emitters": True,
    "xla_cpu_enable_fast_math": True,
    **{f"xla_cpu_fast_math_honor_{what}": False for what in ("nans", "infs", "division", "functions")},
}


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="sets options of XLA's CPU backend")
@pytest.mark.parametrize("name", ["int4", "uint8", "int16", "e2m1", "e4m3", "e5m0", "e7m1", "bf16", "fp32"])
def test_no_fast_math_can_cancel_the_rounding(name):
    x = probes(parse_format("e5m3" if name in ("bf16", "fp32") else name).magnitudes())
    x = np.concatenate([x, -x])
    compiled = jax.jit(numerics.round_to_grid).lower(x, row_of(name)).compile(compiler_options=FAST_MATH)
    np.testing.assert_array_equal(compiled(x, row_of(name)), numerics.round_to_grid(x, row_of(name)))
    # The trick that it stands for, written plainly, is cancelled: the options have an effect.
    naive = jax.jit(lambda x, m: (x + m) - m).lower(x, np.float32(2**23)).compile(compiler_options=FAST_MATH)
    assert (naive(x, np.float32(2**23)) == x).all()


def test_under_shard_map_each_device_rounds_its_part():
    devices = jax.devices()
    mesh = jax.sharding.Mesh(np.asarray(devices), ("data",))
    x = np.random.default_rng(0).standard_normal((8 * len(devices), 5)).astype(np.float32) * 9
    split = jax.shard_map(
        numerics.round_to_grid,
        mesh=mesh,
        in_specs=(jax.sharding.PartitionSpec("data"), jax.sharding.PartitionSpec()),
        out_specs=jax.sharding.PartitionSpec("data"),
    )
    for name in ("int5", "e3m2", "bf16"):
        np.testing.assert_array_equal(jax.jit(split)(x, row_of(name)), numerics.round_to_grid(x, row_of(name)))


def test_one_compilation_serves_all_formats_under_jit_vmap_and_scan():
    names = [*INTEGERS, *FLOATS, "bf16", "fp32"]
    table = format_table([parse_format(name) for name in names], [1.0] * len(names))
    x = np.random.default_rng(0).standard_normal(256).astype(np.float32) * 5
    one = jax.jit(chex.assert_max_traces(numerics.round_to_grid.__wrapped__, n=1))
    expected = np.stack([one(x, table.row(k)) for k in range(len(names))])
    np.testing.assert_array_equal(jax.vmap(numerics.round_to_grid, (None, 0))(x, table), expected)
    _, scanned = jax.lax.scan(lambda _, row: (None, numerics.round_to_grid(x, row)), None, table)
    np.testing.assert_array_equal(scanned, expected)


@pytest.mark.parametrize("name", INTEGERS + FLOATS + RESERVED)
def test_listed_magnitudes_are_those_of_the_codes(name):
    np.testing.assert_array_equal(parse_format(name).magnitudes(), grid_of(name))


def test_quantize_is_the_plain_entry():
    x = jnp.asarray([0.3, -1.26, 500.0, np.nan, -0.0, 240.0])
    y = aqt_like.quantize(x, "e4m3", clip=480.0)
    np.testing.assert_array_equal(y, jnp.asarray([0.3125, -1.25, 480.0, np.nan, -0.0, 240.0]))
    assert np.signbit(y[4])
    np.testing.assert_array_equal(aqt_like.quantize(x, "e4m3fn", clip=448.0)[2], 448.0)
    # Without a clip, the largest finite magnitude is the largest code.
    np.testing.assert_allclose(aqt_like.quantize([1.0, -7.0, 2.4, np.inf], "int4"), [1, -7, 2, 7])
    np.testing.assert_array_equal(aqt_like.quantize(jnp.zeros(3), "int4"), jnp.zeros(3))
    np.testing.assert_array_equal(aqt_like.quantize(0.3, "bf16"), np.float32(ml_dtypes.bfloat16(0.3)))
    with pytest.raises(UnknownFormatError, match="'fp9'"):
        aqt_like.quantize(x, "fp9")


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_inputs_are_rounded_once(dtype):
    x = jnp.asarray(np.random.default_rng(0).standard_normal(4096) * 100, dtype)
    expected = aqt_like.quantize(np.asarray(x).astype(np.float32), "e3m2", clip=112.0)
    np.testing.assert_array_equal(aqt_like.quantize(x, "e3m2", clip=112.0), expected)


HUGE = float(np.finfo(np.float32).max)
CLIPS = [0.0, 1e-45, 1e-40, 1e-38, 1e-37, 3e-37, 1e-36, 1e-30, 1e-20, 1.0, 3e38, HUGE]


def reference(x, name, clip):
    """The nearest values at scale clip / largest, in float64; subnormals count as zero, as on hardware that flushes."""
    x, clip = np.where(np.abs(x) < 2.0**-126, 0, x).astype(np.float64), np.float64(np.float32(clip))
    grid = grid_of(name)
    scale = clip / grid[-1] if clip else 1
    magnitudes = nearest_even(np.minimum(np.abs(x), clip) / scale, grid) * scale
    return np.where(x > 0, magnitudes, 0 if name[0] == "u" else -magnitudes)


@pytest.mark.parametrize("name", ["int2", "int8", "uint4", "e4m3", "e5m2", "e7m1"])
def test_every_finite_tensor_and_threshold_gives_the_nearest_values(name):
    factors = np.random.default_rng(0).uniform(-1.5, 1.5, 100)
    quantize = jax.jit(aqt_like.quantize, static_argnums=1)
    for clip in CLIPS:
        tensor = np.clip(
            [*(factors * (clip or 1)), 0, 1e-45, -1e-40, 1e-36, -1e-37, clip, -1, HUGE, -HUGE], -HUGE, HUGE
        )
        tensor = tensor.astype(np.float32)
        expected = reference(tensor, name, clip)
        values, scale = numerics.quantize_to_grid(tensor, name, clip=clip)
        assert np.isin(np.abs(values), grid_of(name)).all()
        for found in (quantize(tensor, name, clip=clip), np.asarray(values * scale)):
            np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1.02 * 2.0**-126)


@pytest.mark.parametrize("name", ["int8", "e4m3", "e5m2"])
def test_without_a_threshold_tiny_huge_and_infinite_tensors_keep_their_largest_value(name):
    for values in (
        [1e-36, 5e-37, 0, -1e-36],
        [3e38, 1e38, 0, -HUGE],
        [1e-36, np.inf, -np.inf, 0],
        [1e-40, 0, 1e-45, 0],
    ):
        tensor = np.asarray(values, np.float32)
        expected = reference(np.clip(tensor, -HUGE, HUGE), name, np.abs(tensor[np.isfinite(tensor)]).max())
        np.testing.assert_allclose(aqt_like.quantize(tensor, name), expected, rtol=1e-6, atol=2.0**-126)


def test_a_threshold_for_each_channel_may_be_zero_tiny_or_huge():
    clip = np.asarray(CLIPS, np.float32)
    tensor = np.clip(np.random.default_rng(0).uniform(-1.2, 1.2, (20, len(clip))) * np.float64(clip), -HUGE, HUGE)
    expected = np.stack([reference(tensor[:, k], "int8", clip[k]) for k in range(len(clip))], axis=1)
    found = aqt_like.quantize(tensor.astype(np.float32), "int8", clip=clip)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=2.0**-126)


def test_scales_are_normal_and_exact_where_float32_holds_them():
    row = row_of("e5m2")
    clip = np.asarray([1e-45, 1e-38, 1e-36, 2.0**-126 * 114688, 1e-10, 1, HUGE], np.float32)
    scale_for = jax.jit(numerics.scale_for)
    scale = np.asarray(scale_for(row, clip))
    exact = clip.astype(np.float64) / 114688
    assert (scale >= 2.0**-126).all()
    np.testing.assert_allclose(scale[3:], exact[3:], rtol=3e-7)
    doublings = np.log2(scale / exact)[1:3]  # But for a subnormal threshold, which hardware may take for zero.
    np.testing.assert_allclose(doublings[1], np.round(doublings[1]), atol=1e-6)
    assert (scale[:3] < 2.0**-125).all()
    assert (scale_for(row, np.zeros_like(clip)) == 2.0**-126).all()
    assert (scale_for(row_of("bf16"), clip) == 1).all()


def test_thresholds_of_another_shape_are_refused():
    for shape in ((3, 1), (1, 3), (2,), (4,)):
        with pytest.raises(ValueError, match=r"does not broadcast to the shape \(3,\) of x"):
            aqt_like.quantize(np.ones(3), "int8", clip=np.ones(shape))
    for clip in (-1.0, np.inf, np.nan, 1e39, [1.0, 1.0, -1.0]):
        with pytest.raises(ValueError, match="expected the finite magnitude"):
            aqt_like.quantize(np.ones(3), "int8", clip=clip)
    assert aqt_like.quantize(np.ones((0, 3)), "int8", clip=np.ones((1, 3))).shape == (0, 3)
    assert aqt_like.quantize(np.ones((0, 3)), "int8").shape == (0, 3)
