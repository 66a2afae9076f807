import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fliqs_jax import models
from fliqs_jax.models import efficientnet, fast_convolution

onnx = pytest.importorskip("onnx", reason="needs requirements-devices.txt")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs requirements-devices.txt")

from launch.runtimes import onnx_graphs  # noqa: E402


def run(graph, x):
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    [y] = session.run(None, {"input": np.asarray(x)})
    return y


def assert_exports(function, x):
    expected = jax.jit(function)(x)
    graph = onnx_graphs.export(function, x)
    np.testing.assert_allclose(run(graph, x), expected, rtol=1e-4, atol=1e-4 * float(abs(expected).max()))
    return graph


@pytest.mark.parametrize(
    ("name", "settings", "shape"),
    [
        ("cifar_resnet", {"depth": 8, "width": 4}, (2, 16, 16, 3)),
        ("efficientnet_b0", {"width": 0.1}, (1, 32, 32, 3)),
        ("deit_ti16", {"blocks": 2}, (1, 32, 32, 3)),
        ("recommender", {}, (3, 39)),
    ],
)
def test_networks_compute_in_onnxruntime_what_they_do_in_jax(name, settings, shape, monkeypatch):
    monkeypatch.setattr(efficientnet, "STAGES", efficientnet.STAGES[:3])
    model = models.create(name, classes=models.find(name).classes if name == "recommender" else 10, **settings)
    mode = {"train": False}
    x = jax.random.normal(jax.random.key(0), shape)
    if name == "recommender":
        x = abs(jnp.round(10 * x))
    variables = jax.jit(lambda x: model.init(jax.random.key(1), x, **mode))(x)
    # Batch normalisation that does something.
    variables = jax.tree.map(lambda v: v + 0.1 * jnp.arange(v.size).reshape(v.shape) / v.size, variables)
    assert_exports(lambda x: model.apply(variables, x, **mode), x)


NHWC = ("NHWC", "HWIO", "NHWC")


def conv(channels, x, **settings):
    kernel = jnp.arange(27.0 * channels).reshape(3, 3, 3, channels) / (27 * channels)
    layer = nn.Conv(channels, (3, 3), **settings)
    return layer.apply({"params": {"kernel": kernel, "bias": jnp.ones(channels)}}, x)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: nn.avg_pool(x, (3, 2), (2, 2), "SAME").mean((1, 2)),
        lambda x: nn.max_pool(x, (3, 3), (2, 1), ((1, 0), (0, 1))) + 1,
        lambda x: nn.gelu(x) * nn.silu(x) - nn.softmax(x, axis=-1),
        lambda x: jnp.concatenate([x[:, ::2, 1:], 2 * x[:, 1::2, :-1]], axis=2) / 3,
        lambda x: nn.relu6(5 * x).transpose(0, 3, 1, 2).reshape(x.shape[0], -1) ** 3,
        lambda x: jnp.einsum("bhwc,bvwc->bwhv", x, x),
        lambda x: jnp.where(x > 0.5, x, -x) / jnp.sqrt(1 + jnp.square(x)).max(),
        lambda x: conv(2, x, strides=(2, 1), padding="SAME", kernel_dilation=(1, 2)),
        lambda x: fast_convolution.conv_general_dilated(
            x, jnp.ones((3, 3, 1, 3)), (1, 1), [(1, 1)] * 2, dimension_numbers=NHWC, feature_group_count=3
        ),
    ],
)
def test_operations_in_any_layout(function):
    assert_exports(function, jax.random.uniform(jax.random.key(0), (2, 8, 6, 3)))
    # Behind a convolution, whose result lies with its channels first.
    assert_exports(lambda x: function(conv(3, x)), jax.random.uniform(jax.random.key(0), (2, 8, 6, 3)))


def test_chains_of_convolutions_are_not_transposed_and_layers_have_their_paths():
    model = models.create("cifar_resnet", classes=10, depth=8, width=4)
    x = jnp.ones((1, 8, 8, 3))
    variables = jax.jit(lambda x: model.init(jax.random.key(1), x, train=False))(x)
    graph = onnx_graphs.export(lambda x: model.apply(variables, x, train=False), x).graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("Transpose") == 1
    named = {node.name for node in graph.node if node.op_type in ("Conv", "MatMul")}
    assert {"stem", "stage2_block1/shortcut", "classifier"} <= named
    assert len(named) == 10
    assert [graph.input[0].name, graph.output[0].name] == ["input", "output"]


def test_what_cannot_be_exported_is_named():
    x = jnp.ones((2, 8))
    with pytest.raises(onnx_graphs.ExportError, match="sort has no counterpart"):
        onnx_graphs.export(jnp.sort, x)
    with pytest.raises(onnx_graphs.ExportError, match="nothing to export"):
        onnx_graphs.export(lambda x: jnp.ones(3), x)
    kernel = jnp.ones((3, 3, 1, 1))
    with pytest.raises(onnx_graphs.ExportError, match="transposed convolutions"):
        onnx_graphs.export(lambda x: jax.lax.conv_transpose(x, kernel, (2, 2), "SAME"), jnp.ones((1, 4, 4, 1)))
