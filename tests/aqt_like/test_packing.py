import json

import numpy as np
import pytest
import safetensors
from safetensors.numpy import save_file

import aqt_like
from aqt_like import calibration, granularity, packing, tensor_file
from aqt_like.formats import parse_format

NAMES = [
    "int2",
    "int3",
    "int4",
    "int5",
    "int6",
    "int7",
    "int8",
    "uint4",
    "uint7",
    "uint8",
    "e2m1",
    "e3m2",
    "e1m3",
    "e4m3",
    "e4m3fn",
    "e5m2",
    "e5m2ieee",
    "e3m4ieee",
    "e6m1",
    "int9",
    "uint13",
    "int16",
    "e5m9",
    "bf16",
    "fp32",
]


def tensor(shape=(3, 7, 5), seed=0):
    x = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    x.ravel()[:4] = [0.0, -0.0, 100.0, -100.0]
    return x


@pytest.mark.parametrize("name", NAMES)
def test_unpacking_gives_the_quantised_tensor_bit_for_bit(name):
    x = tensor()
    packed = packing.pack(x, name, clip=1.7)
    found, expected = packing.unpack(packed), np.asarray(aqt_like.quantize(x, name, clip=1.7))
    if name[0] == "u":
        expected = np.abs(expected)  # no sign, of zero either
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))
    assert packed.codes.dtype == np.uint8
    assert packed.codes.size == -(-x.size * parse_format(name).bits // 8)


def test_the_stream_is_dense_and_little_endian():
    packed = packing.pack(np.asarray([1.0, -1.0, 7.0, 0.0]), "int4", clip=7.0)
    assert list(packed.codes) == [0x91, 0x07]
    five = packing.pack(np.asarray([1.0, 2.0, -15.0]), "int5", clip=15.0)
    assert int.from_bytes(five.codes.tobytes(), "little") == 1 | 2 << 5 | 31 << 10


def test_float_codes_are_those_of_the_hardware_type():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    for name, dtype in (("e4m3fn", ml_dtypes.float8_e4m3fn), ("e5m2ieee", ml_dtypes.float8_e5m2)):
        largest = parse_format(name).largest
        x = np.clip(tensor() * 10, -largest, largest)
        packed = packing.pack(x, name, clip=largest)
        np.testing.assert_array_equal(packed.codes, x.astype(dtype).ravel().view(np.uint8))


def test_a_scale_per_channel():
    x = tensor((4, 6))
    clip = np.abs(x).max(0, keepdims=True)
    packed = packing.pack(x, "int5", clip=clip)
    assert packed.scale.shape == (1, 6)
    np.testing.assert_array_equal(packing.unpack(packed), aqt_like.quantize(x, "int5", clip=clip))


def test_empty_and_scalar_tensors():
    assert packing.unpack(packing.pack(np.zeros((0, 3)), "int4", clip=1.0)).shape == (0, 3)
    assert packing.unpack(packing.pack(0.5, "int8", clip=127.0)) == 0


def test_what_cannot_be_packed_is_refused():
    with pytest.raises(ValueError, match=r"1 of 2 values are not of e4m3, 1 of them NaN"):
        packing.pack(np.asarray([1.0, np.nan]), "e4m3", clip=1.0)
    with pytest.raises(ValueError, match="1 of 2 values are not of int4"):
        packing.pack_values(np.asarray([1.0, 8.0]), np.ones(()), "int4")
    with pytest.raises(ValueError, match="negative"):
        packing.pack_values(np.asarray([1.0, -1.0]), np.ones(()), "uint4")
    with pytest.raises(ValueError, match="not of bf16"):
        packing.pack_values(np.asarray([1.0, 1.00001]), np.ones(()), "bf16")


def test_codes_and_scales_are_packed_as_they_are():
    """A scale that is not that of the clip threshold in the last bit, and codes of a shifted exponent."""
    scale = np.float32(0.1) / np.float32(7)
    codes = np.asarray([[-7.0, 3.0], [-0.0, 1.0]], np.float32)
    packed = packing.pack_values(codes, scale, "int4")
    np.testing.assert_array_equal(packing.unpack_values(packed).view(np.uint32), codes.view(np.uint32))
    assert packed.scale == scale
    shifted = packing.pack_values(np.asarray([0.75 * 2.0**-8]), np.ones(()), "e5m2", exponent=-8)
    assert packing.unpack_values(shifted) == 0.75 * 2.0**-8
    np.testing.assert_array_equal(packing.unpack(shifted), packing.unpack_values(shifted))


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "weights.safetensors"
    tensors = {"a/kernel": packing.pack(tensor(), "int5", clip=2.0), "b": packing.pack(tensor((9,)), "e3m2", clip=1.0)}
    packing.save(path, tensors)
    return path, tensors


def test_files_hold_all_of_it(saved):
    path, tensors = saved
    loaded = packing.load(path)
    assert loaded.keys() == tensors.keys()
    for name, packed in tensors.items():
        assert loaded[name].format == packed.format
        np.testing.assert_array_equal(packing.unpack(loaded[name]), packing.unpack(packed))
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_every_flipped_byte_and_every_cut_is_noticed(saved):
    path, tensors = saved
    original = path.read_bytes()
    values = {name: packing.unpack(packed) for name, packed in tensors.items()}
    noticed = 0
    for position in range(0, len(original), 3):
        damaged = bytearray(original)
        damaged[position] ^= 0x15
        path.write_bytes(damaged)
        try:
            loaded = packing.load(path)
        except packing.DamagedFileError:
            noticed += 1
        else:  # bytes of padding may change: the tensors may not
            for name, expected in values.items():
                np.testing.assert_array_equal(packing.unpack(loaded[name]), expected)
    assert noticed > 0.9 * len(range(0, len(original), 3))
    for length in (0, 5, len(original) // 2, len(original) - 1):
        path.write_bytes(original[:length])
        with pytest.raises(packing.DamagedFileError, match="truncated"):
            packing.load(path)


def test_other_files_and_versions_are_refused(saved, tmp_path):
    path, tensors = saved
    tensor_file.save(path, {}, {"kind": packing.KIND, "version": 2})
    with pytest.raises(packing.DamagedFileError, match="of version 2: expected a file of packed tensors of version 3"):
        packing.load(path)
    foreign = tmp_path / "foreign.safetensors"
    save_file({"x": np.zeros(3)}, foreign)
    with pytest.raises(packing.DamagedFileError, match="no file of this package"):
        packing.load(foreign)
    (tmp_path / "text").write_text(json.dumps({}))
    with pytest.raises(packing.DamagedFileError):
        packing.load(tmp_path / "text")
    with pytest.raises(ValueError, match="collide"):
        packing.save(tmp_path / "c", {"a": tensors["b"], "a.scale": tensors["b"]})


@pytest.mark.parametrize("name", granularity.BLOCK_FORMATS)
def test_block_formats_survive_the_file_bit_for_bit(name, tmp_path):
    x = np.random.default_rng(0).standard_normal((6, 80)).astype(np.float32)
    packed = packing.pack(x, name)
    packing.save(tmp_path / "x.safetensors", {"x": packed})
    loaded = packing.load(tmp_path / "x.safetensors")["x"]
    assert loaded.blocks == packed.blocks
    np.testing.assert_array_equal(packing.unpack(loaded), aqt_like.quantize_blocks(x, name))
    assert packed.scale.shape == (6, -(-80 // granularity.BLOCK_FORMATS[name].size))
    with safetensors.safe_open(tmp_path / "x.safetensors", framework="numpy") as file:
        assert file.get_tensor("x.scale").dtype == (np.float32 if name == "nvfp4" else np.uint8)


def test_blocks_with_thresholds_of_ones_own():
    x = np.random.default_rng(0).standard_normal((6, 10)).astype(np.float32)
    blocks = granularity.per_block(4, 0)
    clip = blocks.thresholds(x, calibration.root_mean_square) * 2
    packed = packing.pack(x, "int5", clip=clip, blocks=blocks)
    np.testing.assert_array_equal(
        packing.unpack(packed), aqt_like.quantize(x, "int5", clip=blocks.spread(clip, x.shape))
    )
    with pytest.raises(ValueError, match="blocks need a clip"):
        packing.pack(x, "int5", blocks=blocks)


@pytest.mark.parametrize("name", ["int8", "e5m2", "uint4", "mxfp4"])
def test_tiny_tensors_are_packed_bit_for_bit(name, tmp_path):
    x = np.asarray([[1e-36, 5e-37, 0.0, 1e-37], [3e-38, 1e-38, 1e-40, 2e-36]], np.float32)
    packed = packing.pack(x, name)
    quantize = aqt_like.quantize_blocks if name in granularity.BLOCK_FORMATS else aqt_like.quantize
    expected = np.asarray(quantize(x, name))
    np.testing.assert_array_equal(packing.unpack(packed).view(np.uint32), expected.view(np.uint32))
    assert np.abs(expected - x).max() < 3e-37  # the widest step, that of e2m1
    packing.save(tmp_path / "x", {"x": packed, "empty": packing.pack(x[:, :0], name)})
    loaded = packing.load(tmp_path / "x")
    np.testing.assert_array_equal(packing.unpack(loaded["x"]), expected)
    assert packing.unpack(loaded["empty"]).shape == (2, 0)


def test_thresholds_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="does not broadcast"):
        packing.pack(np.ones(3), "int8", clip=np.ones((3, 1)))
    with pytest.raises(ValueError, match=r"thresholds of shape \(2, 4\): expected 3 along axis 1"):
        packing.pack(np.ones((2, 12)), "int8", clip=np.ones((2, 4)), blocks=granularity.per_block(4, -1))


def test_the_name_that_safetensors_keeps_for_itself_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"x cannot hold a tensor called '__metadata__'"):
        packing.save(tmp_path / "x", {"__metadata__": packing.pack(np.ones(3), "int8")})
    assert list(tmp_path.iterdir()) == []
