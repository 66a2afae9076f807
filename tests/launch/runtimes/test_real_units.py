"""Graphs of networks in real units: the fast form, and QONNX."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import aqt_like
from aqt_like import numerics
from aqt_like.formats import parse_format
from aqt_like.frozen_network import Factor, format_row
from aqt_like.packing import spread_scale, unpack_values
from aqt_like.quantized_layer import DEFAULT_QUANTIZER
from launch.runtimes import self_check
from tests import tiny_network
from tests.launch.runtimes.test_exact_export import any_batch, awkward_values, in_runtimes

onnx = pytest.importorskip("onnx", reason="needs requirements-devices.txt")
pytest.importorskip("onnxruntime", reason="needs requirements-devices.txt")

from onnx import reference  # noqa: E402

from launch.runtimes import fast_graphs, onnx_graphs, qonnx_graphs, real_units  # noqa: E402
from launch.runtimes.onnx_builder import ExportError, Operands  # noqa: E402


def graph_of(frozen, model, shape, operands, **mode):
    network, variables = real_units.bind(frozen, model, DEFAULT_QUANTIZER)
    return onnx_graphs.export_with_containers(
        lambda x: network.apply(variables, x, **mode), any_batch(*shape), operands=operands
    )


@pytest.fixture(scope="module")
def dense():
    """A frozen layer of int4 weights and unsigned int4 inputs, its model, and inputs beyond its range."""
    model, x = nn.Sequential([nn.Dense(3)]), abs(np.random.default_rng(0).standard_normal((40, 5), np.float32))
    variables = model.init(jax.random.key(0), x)
    network = aqt_like.quantize_model(model, variables, x, {".*": "int4"})
    return aqt_like.freeze(network, variables, x), model, 3 * x


def parts_of(frozen):
    """The layer's weights in float32, its bias, and the value of one unit of its input."""
    [layer] = frozen.layers.values()
    weights = unpack_values(layer.weights.packed) * spread_scale(layer.weights.packed)
    return weights, frozen.variables["params"]["layers_0"]["bias"], layer.input_scale * 2.0**layer.input_exponent


def test_inputs_are_clipped_and_weights_are_those_of_the_codes(dense, tmp_path):
    frozen, model, x = dense
    weights, bias, unit = parts_of(frozen)
    expected = np.clip(x, 0, 15 * unit) @ weights + bias
    assert x.max() > 15 * unit
    graph = graph_of(frozen, model, (5,), fast_graphs.CLIPPED).model
    for runner in in_runtimes(graph, tmp_path):
        np.testing.assert_allclose(runner.run(x), expected, rtol=1e-5, atol=1e-6)


class Quant(reference.op_run.OpRun):
    """What the specification of QONNX says of the node, in NumPy."""

    op_domain = qonnx_graphs.DOMAIN

    def _run(self, x, scale, zero, bits, signed, narrow, rounding_mode):
        assert (zero, rounding_mode) == (0, "ROUND")
        lowest = -(2 ** (bits - 1)) + narrow if signed else 0
        largest = 2 ** (bits - 1) - 1 if signed else 2**bits - 1 - narrow
        return (np.float32(np.round(np.clip(x / scale, lowest, largest)) * scale),)


class FloatQuant(reference.op_run.OpRun):
    """The same of floats."""

    op_domain = qonnx_graphs.DOMAIN

    def _run(self, x, scale, exponent_bits, mantissa_bits, bias, largest, **flags):
        assert flags["has_subnormal"]
        assert not flags["has_inf"]
        exponent_bits, mantissa_bits, bias, largest = map(float, (exponent_bits, mantissa_bits, bias, largest))
        assert largest <= (2 - 2**-mantissa_bits) * 2 ** (2**exponent_bits - 1 - bias)
        units = np.float64(x) / scale
        _, exponents = np.frexp(units)
        step = 2.0 ** (np.maximum(exponents - 1, 1 - bias) - mantissa_bits)
        return (np.float32(np.clip(np.round(units / step) * step, -largest, largest) * scale),)


def evaluated(graph, x):
    """The graph as ONNX's own reference evaluates it, with the nodes above."""
    return reference.ReferenceEvaluator(graph, new_ops=[Quant, FloatQuant]).run(None, {"input": x})[0]


@pytest.mark.parametrize("name", ["int2", "int8", "uint4", "e2m1", "e4m3", "bf16"])
def test_nodes_of_qonnx_have_the_values_of_the_format(name):
    fmt, x = parse_format(name), awkward_values(name)
    row = format_row(fmt)
    unit = np.float32(1 if fmt.name == "bf16" else 0.25)

    def rounded(graph, arguments, scope):
        return qonnx_graphs._quantized(graph, arguments[0], fmt, unit, scope)

    operands = Operands(rounded, fast_graphs.CLIPPED.factors)
    function = lambda x: numerics.round_to_grid(x, row)  # noqa: E731
    graph = onnx_graphs.export_with_containers(function, any_batch(1), operands=operands)
    np.testing.assert_array_equal(evaluated(graph.model, unit * x), unit * numerics.round_to_grid(x, row))


@pytest.fixture(scope="module")
def network():
    """A frozen network with normalisation, its model, images and logits."""
    model = tiny_network.make_network(10)
    images = jax.random.normal(jax.random.key(0), (8, 8, 8, 1))
    variables = jax.jit(lambda x: model.init(jax.random.key(1), x, train=False))(images)
    variables = jax.tree.map(lambda v: v + 0.1 * jnp.arange(v.size).reshape(v.shape) / v.size, variables)
    rules = {"stem": "int4", "classifier": "bf16", ".*": "int8"}
    network = aqt_like.quantize_model(model, variables, images, rules, train=False)
    frozen = aqt_like.freeze(network, variables, images, train=False)
    bound, variables = frozen.bind(model)
    logits = jax.jit(lambda x: bound.apply(variables, x, train=False))(images)
    return frozen, model, np.asarray(images), np.asarray(logits)


def test_the_fast_form_is_a_network_of_8_bits(network, tmp_path):
    frozen, model, images, logits = network
    graph = graph_of(frozen, model, (8, 8, 1), fast_graphs.CLIPPED, train=False)
    made = fast_graphs.quantized(graph, frozen, [images[:4], images[4:]])
    kinds = [node.op_type for node in made.model.graph.node]
    assert kinds.count("Conv") == 3
    assert not {"BatchNormalization", "Mul", "Sub"} & {*kinds}  # it is in the weights
    biases = [each for each in made.model.graph.initializer if each.data_type == onnx.TensorProto.INT32 and each.dims]
    assert biases
    assert made.containers["stem"] == ["UINT8", "INT8"]
    assert made.containers["classifier"] == ["FLOAT", "FLOAT"]
    for runner in in_runtimes(made.model, tmp_path):
        integer, products = runner.integer_kernels
        assert 3 <= integer < products
        np.testing.assert_allclose(runner.run(images), logits, atol=0.05 * np.abs(logits).max())


def test_a_network_for_qonnx_has_the_answers_of_the_run(network):
    frozen, model, images, logits = network
    made = graph_of(frozen, model, (8, 8, 1), qonnx_graphs.operands(frozen), train=False)
    np.testing.assert_allclose(evaluated(made.model, images), logits, rtol=1e-4, atol=1e-5)
    nodes = {node.output[0]: node for node in made.model.graph.node}
    [stem] = [node for node in made.model.graph.node if node.name == "stem"]
    constants = {each.name: onnx.numpy_helper.to_array(each) for each in made.model.graph.initializer}
    weights = nodes[stem.input[1]]
    assert (weights.op_type, constants[weights.input[3]]) == ("Quant", 4)
    packed = frozen.layers["stem"].weights.packed
    np.testing.assert_array_equal(constants[weights.input[1]].ravel(), packed.scale.ravel())
    assert made.containers["classifier"] == ["FloatQuant, 8 and 7 bits"] * 2


def test_the_package_qonnx_executes_the_file(network, tmp_path):
    frozen, model, images, logits = network
    file = tmp_path / "model.qonnx"
    if self_check.missing_runtimes(file):
        pytest.skip("needs the package qonnx, in this environment or in that of QONNX_PYTHON")
    made = graph_of(frozen, model, (8, 8, 1), qonnx_graphs.operands(frozen), train=False)
    file.write_bytes(made.model.SerializeToString())
    [(_, start)] = self_check.runtimes_of(file)
    runner = start(file)
    np.testing.assert_allclose(runner.run(images), logits, rtol=1e-4, atol=1e-5)
    assert runner.run(images[:1]).shape == (1, 10)
    runner.close()


def test_the_fast_form_needs_integers(dense):
    frozen, _, _ = dense
    [(path, layer)] = frozen.layers.items()
    assert fast_graphs.layers_in_float(frozen) == []
    other = dataclasses.replace(frozen, layers={path: layer._replace(input_format="bf16")})
    with pytest.raises(ExportError, match="no layer has an integer format of at most 8 bits"):
        fast_graphs.layers_in_float(other)


def test_products_of_activations_are_refused(dense):
    frozen, model, _ = dense
    [(path, layer)] = frozen.layers.items()
    other = dataclasses.replace(frozen, layers={path: layer._replace(weights=Factor("int8", 3.0))})
    with pytest.raises(ExportError, match="a product of two activations, with scales that depend on the input"):
        real_units.bind(other, model, DEFAULT_QUANTIZER)
