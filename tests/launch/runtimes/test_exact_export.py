"""Number formats and frozen networks as graphs and serialised programs: the same answers as in JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import aqt_like
from aqt_like import numerics, packing
from aqt_like.formats import parse_format
from aqt_like.frozen_network import format_row
from aqt_like.quantized_layer import DEFAULT_QUANTIZER
from fliqs_jax import models
from launch.runtimes import self_check, serialized_programs

RULES = {
    "patches": "int4",
    "qkv": "e2m1",
    "projection": "bf16",
    "scores": "int3",
    "mixture": "e3m2",
    "mlp1": "int5/int8",
    "mlp2": "e4m3",
    ".*": "int8",
}


@pytest.fixture(scope="module")
def graphs():
    pytest.importorskip("onnx", reason="needs requirements-devices.txt")
    pytest.importorskip("onnxruntime", reason="needs requirements-devices.txt")
    from launch.runtimes import onnx_graphs

    return onnx_graphs


def any_batch(*shape):
    return jax.ShapeDtypeStruct((*export.symbolic_shape("b"), *shape), jnp.float32)


def in_runtimes(model, tmp_path):
    """The graph in each installed runtime."""
    file = tmp_path / "model.onnx"
    file.write_bytes(model.SerializeToString())
    return [start(file) for _, start in self_check.runtimes_of(file)]


def awkward_values(name):
    """All values of a format with their midpoints, the neighbours of both, and values beyond its largest one."""
    fmt = parse_format(name)
    ends = fmt.magnitudes().astype(np.float32) if fmt.bits <= 8 else np.float32([0, 1, 3, 1023, 1024, fmt.largest])
    ends = ends[ends < 1e30]
    around = np.concatenate([ends, (ends[1:] + ends[:-1]) / 2, 3 * ends[-1:]])
    # bfloat16's midpoints have 9 significant bits.
    around = np.concatenate([around, np.arange(1, 512, 2, dtype=np.float32) * 2.0**-3])
    near = np.concatenate([around, np.nextafter(around, np.inf), np.nextafter(around, -np.inf)])
    near = near[(near == 0) | (abs(near) >= np.finfo(np.float32).tiny)]  # JAX may flush float32's subnormals
    return np.concatenate([near, -near]).astype(np.float32)[:, None]


@pytest.mark.parametrize(
    "name", ["int2", "int8", "uint4", "uint8", "int12", "e2m1", "e4m3", "e6m1", "e5m2ieee", "bf16"]
)
def test_inputs_are_rounded_as_in_jax(name, graphs, tmp_path):
    row, x = format_row(parse_format(name)), awkward_values(name)
    expected = numerics.round_to_grid(x, row)
    graph = graphs.export(lambda x: numerics.round_to_grid(x, row), any_batch(1))
    for runner in in_runtimes(graph, tmp_path):
        np.testing.assert_array_equal(runner.run(x), expected, err_msg=runner.runtime)


@pytest.mark.parametrize(
    ("kernel", "container"),
    [
        (np.arange(-7.0, 8)[None].repeat(8, 0), "INT4"),
        (np.arange(-60.0, 60).reshape(8, 15), "INT8"),
        (np.arange(-600.0, 600, 10).reshape(8, 15), "INT16"),
        (np.float32([0, 0.5, 1, 1.5, 2, 3, 4, -6])[:, None].repeat(20, 1), "UINT4 and a table"),
        (np.linspace(0.001, 1, 120).astype(jnp.bfloat16).astype(np.float32).reshape(8, 15), "BFLOAT16"),
        (np.linspace(0.001, 1, 120, dtype=np.float32).reshape(8, 15), "FLOAT"),
    ],
)
def test_constants_are_in_the_smallest_type_that_holds_them(kernel, container, graphs, tmp_path):
    kernel = np.float32(kernel)
    exported = graphs.export_with_containers(lambda x: x @ kernel, any_batch(8))
    assert exported.containers == {"": [container]}
    for runner in in_runtimes(exported.model, tmp_path):
        np.testing.assert_allclose(runner.run(np.eye(8, dtype=np.float32)), kernel, rtol=1e-6)


@pytest.mark.parametrize("largest", [7, 127, 1000])
def test_whole_numbers_are_multiplied_exactly(largest, graphs, tmp_path):
    """For weights behind a DequantizeLinear, runtimes round factors that are floats to 8 bits."""
    rng = np.random.default_rng(0)
    kernel = rng.integers(-largest, largest + 1, (48, 96)).astype(np.float32)
    x = rng.integers(-300, 301, (2, 5, 48)).astype(np.float32)
    row = format_row(parse_format("int8"))
    codes = graphs.export(lambda x: numerics.round_to_grid(x, row) @ kernel, any_batch(5, 48))
    floats = graphs.export(lambda x: x @ kernel, any_batch(5, 48))
    for graph, values in ((codes, np.clip(x, -127, 127)), (floats, x)):
        for runner in in_runtimes(graph, tmp_path):
            np.testing.assert_array_equal(runner.run(x), values @ kernel, err_msg=runner.runtime)
            if graph is codes and largest == 127:
                assert runner.integer_kernels == (1, 1), runner.runtime


def test_codes_straight_behind_a_layer_are_those_of_jax(graphs, tmp_path):
    """Where a scale is 1, nothing is multiplied between a layer and the codes of the next."""
    rng, row = np.random.default_rng(0), format_row(parse_format("uint8"))
    kernel = rng.integers(-7, 8, (3, 3, 4, 8)).astype(np.float32)
    scale, shift = (rng.uniform(low, 3 * low, 8).astype(np.float32) for low in (0.1, 5))

    def network(x):
        sums = jax.lax.conv_general_dilated(
            numerics.round_to_grid(x, row), kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return numerics.round_to_grid(jax.nn.relu(sums * scale + shift), row)

    x = rng.uniform(0, 255, (4, 8, 8, 4)).astype(np.float32)
    expected = np.asarray(network(x))
    assert len(np.unique(expected)) > 50
    for runner in in_runtimes(graphs.export(network, any_batch(8, 8, 4)), tmp_path):
        assert np.mean(runner.run(x) != expected) < 0.002, runner.runtime


def test_a_layer_that_is_called_twice_has_two_names(graphs, tmp_path):
    def twice(x):
        with jax.named_scope("Model"), jax.named_scope("layer"):
            return jnp.sin(x @ kernel) @ kernel

    kernel = np.float32([[1, 2], [3, 4]])
    x = np.float32([[0.5, 1]])
    graph = graphs.export(twice, any_batch(2))
    assert {node.name for node in graph.graph.node if node.op_type == "MatMul"} == {"layer", "layer:2"}
    for runner in in_runtimes(graph, tmp_path):
        np.testing.assert_allclose(runner.run(x), twice(x), rtol=1e-6)


@pytest.fixture(scope="module")
def transformer():
    """A frozen transformer of one block with many formats, its model, and images."""
    model = models.create("deit_ti16", classes=10, blocks=1, width=0.125, patch=4)
    images = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
    variables = jax.jit(lambda x: model.init(jax.random.key(1), x, train=False))(images)
    network = aqt_like.quantize_model(model, variables, images, RULES, train=False)
    return aqt_like.freeze(network, variables, images, train=False), model, np.asarray(images)


@pytest.fixture(scope="module")
def expected(transformer):
    """The network in batches of four and of one."""
    frozen, model, images = transformer
    network, variables = frozen.bind(model)
    logits = jax.jit(lambda x: network.apply(variables, x, train=False))
    return [(x, np.asarray(logits(x))) for x in (images, images[:1])]


def test_a_transformer_computes_in_runtimes_what_it_does_in_jax(transformer, expected, graphs, tmp_path):
    frozen, model, _ = transformer
    network, variables = frozen.bind(model)
    exported = graphs.export_with_containers(lambda x: network.apply(variables, x, train=False), any_batch(8, 8, 3))
    for runner in in_runtimes(exported.model, tmp_path):
        for x, logits in expected:
            np.testing.assert_allclose(runner.run(x), logits, rtol=1e-4, atol=1e-5, err_msg=runner.runtime)
    assert exported.containers == {
        "patches": ["UINT8", "INT4"],
        "block1/attention/qkv": ["FLOAT, emulated", "UINT4 and a table"],
        "block1/attention/scores": ["UINT8", "UINT8"],
        "block1/attention/mixture": ["FLOAT, emulated", "FLOAT, emulated"],
        "block1/attention/projection": ["FLOAT rounded to 8 bits", "BFLOAT16"],
        "block1/mlp1": ["UINT8", "INT8"],
        "block1/mlp2": ["FLOAT, emulated", "UINT8 and a table"],
        "classifier": ["UINT8", "INT8"],
    }


def test_a_serialised_program_computes_what_the_network_does(transformer, expected, tmp_path):
    frozen, model, _ = transformer
    made = serialized_programs.serialize(frozen, model, DEFAULT_QUANTIZER, any_batch(8, 8, 3), train=False)
    file = tmp_path / "model.stablehlo"
    file.write_bytes(made)
    runner = self_check.with_jax(file)
    for x, logits in expected:
        np.testing.assert_allclose(runner.run(x), logits, rtol=1e-5, atol=1e-6)
    assert set(export.deserialize(bytearray(made)).platforms) == {"cpu", "cuda", "tpu"}


@pytest.mark.parametrize("name", ["int3", "uint5", "int12", "e3m2", "e6m1", "bf16", "fp32"])
def test_programs_unpack_what_packing_does(name):
    fmt = parse_format(name)
    values = np.asarray(aqt_like.quantize(np.linspace(-3, 3, 61, dtype=np.float32), name, clip=min(fmt.largest, 1e30)))
    if fmt.lowest == 0:
        values = abs(values)
    packed = packing.pack_values(values, np.float32(1), name)
    np.testing.assert_array_equal(jax.jit(lambda: serialized_programs.unpacked(packed))(), values)


def test_differing_decisions_have_their_margins():
    expected = np.float32([[3, 1, 0], [0, 2, 1.5], [9, 9, 9]])
    found = expected + np.float32([[0, 0, 0.25], [0, 0, 1], [0, 0, 0]])
    known = self_check.Known([np.zeros((3, 1))], [expected], [np.asarray([True, True, False])])
    told = self_check.compare([found], known)
    assert told["differing"] == [{"example": 1, "margin": 0.5, "difference": 1.0}]
    assert (told["examples"], told["decisions"], told["largest_difference"]) == (2, 2, 1.0)
    assert self_check.has_too_many_differing([told])
    assert not self_check.is_broken([told])
    assert not self_check.has_too_many_differing([self_check.compare([expected], known)])
    assert self_check.is_broken([self_check.compare([expected + np.nan], known)])
    one_logit = self_check.Known([np.zeros((2, 1))], [np.float32([[-0.2], [-1]])], [np.asarray([True, True])])
    single = self_check.compare([np.float32([[0.1], [-1]])], one_logit)
    assert [each["example"] for each in single["differing"]] == [0]
