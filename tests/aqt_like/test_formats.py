import dataclasses

import jax
import ml_dtypes
import numpy as np
import pytest

from aqt_like.formats import (
    FORMAT_SPACES,
    UnknownFormatError,
    format_space,
    format_table,
    parse_format,
    parse_layer_format,
)


@pytest.mark.parametrize(
    ("name", "bits", "largest", "lowest"),
    [
        ("int2", 2, 1, -1),
        ("int4", 4, 7, -7),
        ("uint4", 4, 15, 0),
        ("int8", 8, 127, -127),
        ("uint8", 8, 255, 0),
        ("e2m1", 4, 6, -6),
        ("e4m3", 8, 480, -480),
        ("e5m2", 8, 114688, -114688),
        ("e3m4", 8, 31, -31),
        ("e4m3fn", 8, 448, -448),
        ("e5m2ieee", 8, 57344, -57344),
        ("e3m4ieee", 8, 15.5, -15.5),
        ("e4m3ieee", 8, 240, -240),
        ("bf16", 16, 3.3895313892515355e38, -3.3895313892515355e38),
    ],
)
def test_golden_values(name, bits, largest, lowest):
    fmt = parse_format(name)
    assert (fmt.bits, fmt.largest, fmt.lowest) == (bits, largest, lowest)


@pytest.mark.parametrize(
    "name", ["int1", "int17", "int", "INT4", "E4M3", "e0m3", "e8m7", "e4", "fp8", "", "int4 ", "uint04", "e1m2ieee"]
)
def test_unknown_names_are_refused_by_name(name):
    with pytest.raises(UnknownFormatError, match="unknown number format"):
        parse_format(name)


@pytest.mark.parametrize(
    ("elsewhere", "here"),
    [
        ("float4_e2m1fn", "e2m1"),
        ("float6_e2m3fn", "e2m3"),
        ("float6_e3m2fn", "e3m2"),
        ("float8_e3m4", "e3m4ieee"),
        ("float8_e4m3", "e4m3ieee"),
        ("float8_e5m2", "e5m2ieee"),
        ("float8_e4m3fn", "e4m3fn"),
        ("float8_e4m3fnuz", "e4m3"),
        ("float8_e4m3b11fnuz", "e4m3"),
        ("float8_e5m2fnuz", "e5m2"),
        ("bfloat16", "bf16"),
    ],
)
def test_names_elsewhere_are_refused_with_the_name_here(elsewhere, here):
    bare = elsewhere.partition("_")[2]
    for name in {elsewhere, elsewhere.replace("_", ""), bare} - {"", "e3m4", "e4m3", "e5m2", "e4m3fn"}:
        with pytest.raises(UnknownFormatError, match=f"unknown number format '{name}': use '{here}'$"):
            parse_format(name)
    if here == "bf16":
        return
    # Every code of the type, as ml_dtypes decodes it: its magnitudes are ours, but for a power of two.
    dtype = np.dtype(elsewhere if elsewhere in np.sctypeDict else getattr(ml_dtypes, elsewhere))
    codes = np.arange(2 ** int(elsewhere[5]), dtype=np.uint8).view(dtype).astype(np.float64)
    magnitudes = np.unique(np.abs(codes[np.isfinite(codes)]))
    ratio = {"e4m3fnuz": 2, "e5m2fnuz": 2, "e4m3b11fnuz": 16}.get(bare, 1)
    np.testing.assert_array_equal(parse_format(here).magnitudes(), ratio * magnitudes)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("e8m0fnu", "shared scales"),
        ("float8_e8m0fnu", "shared scales"),
        ("e5m2fn", "use 'e5m2', which has no NaN"),
        ("e3m3fn", "use 'e3m3', which has no NaN"),
        ("e2m2fnuz", "expected int2"),
    ],
)
def test_suffixes_that_are_not_formats_here_are_refused(name, message):
    with pytest.raises(UnknownFormatError, match=message):
        parse_format(name)


def test_named_spaces_are_those_of_table_5():
    sizes = {name: len(format_space(name)) for name in FORMAT_SPACES}
    assert sizes == {"int_s": 3, "int_l": 6, "fp_s": 3, "fp_l": 16}
    for name in FORMAT_SPACES:
        *narrow, last = format_space(name)
        assert last.name == "bf16"
        assert all(4 <= fmt.bits <= 8 for fmt in narrow)
    # "All the formats with total bitwidths between four and eight" (A.5) but e1 ones and e7m0.
    floats = {f"e{e}m{m}" for e in range(2, 7) for m in range(1, 6) if 4 <= 1 + e + m <= 8}
    assert {f.name for f in format_space("fp_l")} == floats | {"bf16"}


def test_spaces_by_format_names():
    assert [f.name for f in format_space("int4, e4m3")] == ["int4", "e4m3"]
    assert [f.name for f in format_space(("int4",))] == ["int4"]
    with pytest.raises(UnknownFormatError, match="unknown format space 'int_q'"):
        format_space("int_q")
    with pytest.raises(UnknownFormatError, match="named twice"):
        format_space("int4,int4")


def test_unsigned_twins():
    assert parse_format("int4").unsigned_twin is parse_format("uint4")
    for name in ("e4m3", "bf16", "uint4"):
        assert parse_format(name).unsigned_twin.name == name


def test_table_rows_are_the_formats():
    space = format_space("fp_l")
    table = format_table(space, [2.0] * len(space))
    for k, fmt in enumerate(space):
        row = table.row(k)
        for field in dataclasses.fields(fmt):
            if field.name != "name":
                assert getattr(row, field.name) == getattr(fmt, field.name)
    with pytest.raises(ValueError, match="16 formats but 1 clip multiples"):
        format_table(space, [2.0])
    # A traced index gives the same row.
    traced = jax.jit(table.row)(3)
    assert jax.tree.map(float, traced) == jax.tree.map(float, table.row(3))


def test_pairs_are_formats_of_weights_and_inputs():
    mixed = parse_layer_format("int4/int8")
    assert (mixed.weights.name, mixed.inputs.name, mixed.name, mixed.bits) == ("int4", "int8", "int4/int8", 8)
    assert parse_layer_format("int8/int8") is parse_format("int8")
    assert [f.name for f in format_space("int4,int4/int8,e2m1/bf16")] == ["int4", "int4/int8", "e2m1/bf16"]
    assert not parse_layer_format("int4/bf16").is_integer
    for name in ("int4/int8/int8", "int4/", "/int4", "int4/float"):
        with pytest.raises(UnknownFormatError, match="unknown number format"):
            format_space([name])
