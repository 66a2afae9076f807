import importlib.util
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fliqs_jax import models
from launch.runtimes import engines, layer_timing
from launch.runtimes.engines import Program


def test_unknown_and_missing_runtimes_are_told(monkeypatch):
    with pytest.raises(ValueError, match="backend 'tflite': expected one of onnxruntime, openvino, jax"):
        engines.find("tflite", threads=1)
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(engines.RuntimeMissingError, match=r"needs onnxruntime: pip install -r requirements-devices"):
        engines.find("onnxruntime", threads=1)


def layer(x):
    kernel = 0.1 * jax.random.normal(jax.random.key(1), (3, 3, 3, 8))
    dimensions = ("NHWC", "HWIO", "NHWC")
    conv = partial(jax.lax.conv_general_dilated, window_strides=(1, 1), padding="SAME", dimension_numbers=dimensions)
    return Program(lambda kernel, x: jax.nn.relu(conv(x, kernel)), kernel, x)


def test_jax_computes_in_the_width_asked_for():
    runtime = engines.find("jax", threads=1)
    program = layer(jax.random.normal(jax.random.key(0), (1, 8, 8, 3)))
    expected = program.function(program.weights, program.x)
    for width, dtype in ((32, jnp.float32), (16, jnp.bfloat16)):
        for run in (runtime.prepare_network(program, width), runtime.prepare_layer(program, width)):
            y = run()
            assert y.dtype == dtype
            np.testing.assert_allclose(y.astype(jnp.float32), expected, atol=0.03)
    with pytest.raises(ValueError, match="all of a network in one format"):
        runtime.prepare_network(program, 32, ["stem"])


@pytest.mark.parametrize(("x", "zero_point"), [(jnp.linspace(0, 1, 192), 0), (jnp.linspace(-1, 1, 192), 128)])
def test_integers_start_at_zero_only_where_nothing_is_negative(x, zero_point):
    onnx = pytest.importorskip("onnx", reason="needs requirements-devices.txt")
    pytest.importorskip("onnxruntime", reason="needs requirements-devices.txt")
    from launch.runtimes import onnx_graphs, static_quantization

    program = layer(x.reshape(1, 8, 8, 3))
    graph = onnx_graphs.export(lambda x: program.function(program.weights, x), program.x)
    graph = engines._with_integer_ends(static_quantization.quantize(graph, [np.asarray(program.x)]))
    onnx.checker.check_model(graph)
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    nodes = [node for node in graph.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    input_zero, *_, output_zero = (
        int(constants[node.input[2]]) for node in nodes if constants[node.input[2]].dtype == np.uint8
    )
    assert abs(input_zero - zero_point) <= 1
    assert output_zero == 0  # what a rectifier gives
    kernels = [value for value in constants.values() if value.dtype == np.int8 and value.ndim == 4]
    assert len(kernels) == 1
    ends = {end.type.tensor_type.elem_type for end in (graph.graph.input[0], graph.graph.output[0])}
    assert ends == {onnx.TensorProto.UINT8}


def test_layers_of_a_network_can_stay_in_float():
    pytest.importorskip("onnxruntime", reason="needs requirements-devices.txt")
    onnx = pytest.importorskip("onnx", reason="needs requirements-devices.txt")
    from launch.runtimes import onnx_graphs, static_quantization

    model = models.create("cifar_resnet", classes=10, depth=8, width=4)
    whole = layer_timing.network("cifar_resnet", model, (1, 8, 8, 3), train=False).whole
    x = np.asarray(whole.x)
    graph = onnx_graphs.export(lambda x: whole.function(whole.weights, x), whole.x)

    def quantized_layers(float_layers):
        mixed = static_quantization.quantize(graph, [x], float_layers).graph
        int8 = {tensor.name for tensor in mixed.initializer if tensor.data_type == onnx.TensorProto.INT8}
        dequantized = {n.output[0] for n in mixed.node if n.op_type == "DequantizeLinear" and n.input[0] in int8}
        return sum(n.op_type in ("Conv", "Gemm") and n.input[1] in dequantized for n in mixed.node)

    assert quantized_layers([]) == 10
    assert quantized_layers(["stem", "classifier"]) == 8
    with pytest.raises(ValueError, match="no layer head to leave in float"):
        static_quantization.quantize(graph, [x], ["head"])
    mixed = engines.find("onnxruntime", threads=1).prepare_network(whole, 8, ["stem"])
    mixed()


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_networks_and_layers_run(backend):
    if not importlib.util.find_spec(
        backend
    ):  # found, not imported: that is for the runtime to do, with its precautions
        pytest.skip("needs requirements-devices.txt")
    model = models.create("cifar_resnet", classes=10, depth=8, width=4)
    network = layer_timing.network("cifar_resnet", model, (1, 8, 8, 3), train=False)
    runtime = engines.find(backend, threads=1)
    assert backend in runtime.device
    for width in runtime.widths:
        runtime.prepare_network(network.whole, width)()
        for part in network.parts.values():
            runtime.prepare_layer(part, width)()
