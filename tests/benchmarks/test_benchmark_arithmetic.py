from benchmarks import arithmetic


def test_codes_are_exact_where_dequantised_values_are_not():
    convolution = arithmetic.LAYERS["convolution"][0]
    for found in arithmetic.measure(convolution, (2, 6, 5, 8), (3, 3, 8, 64), ["int8", "e7m0", "int12"]).values():
        for name, errors in found.items():
            assert errors["codes"] < 3e-7, name
            assert 1e-3 < errors["dequantised, bf16"] < 5e-3, name
        assert found["int8"]["codes, bf16"] == found["int8"]["codes"]
        assert found["e7m0"]["codes, bf16"] == found["e7m0"]["codes"]
        assert found["int12"]["codes, bf16"] > 1e-3
        assert 3e-3 < found["int8"][arithmetic.QUANTIZATION] < 3e-2


def test_the_table_has_the_largest_errors():
    ways = [*arithmetic.WAYS, arithmetic.QUANTIZATION]
    names = {name for space in arithmetic.FORMAT_SPACES.values() for name in space} | set(arithmetic.OTHERS)
    layers = {
        "dense": {"normal": {name: dict.fromkeys(ways, 1.25e-7) for name in names}},
        "convolution": {"normal": {name: dict.fromkeys(ways, 0.5) for name in names}},
    }
    assert "\n| `int_s` | 5.0e-1 | 5.0e-1 | 5.0e-1 | 5.0e-1 | 1.2e-7 – 5.0e-1 |\n" in arithmetic.markdown(layers)
