import dataclasses
import json

import flax.linen as nn
import jax
import pytest

from aqt_like.formats import format_space, parse_format
from aqt_like.interception import Product
from fliqs_jax.models.resnet import ResNet
from hwcost import analytic, pricing, workload
from hwcost.format_plan import format_plan
from tests import unusual_networks


def test_resnet8_layers_are_those_counted_by_hand():
    layers = workload.trace(ResNet(classes=10, depth=8, width=16), (32, 32, 3), train=False)
    macs = {layer.path: layer.macs for layer in layers}
    assert macs == {
        "stem": 32 * 32 * 9 * 3 * 16,
        "stage1_block1/conv1": 32 * 32 * 9 * 16 * 16,
        "stage1_block1/conv2": 32 * 32 * 9 * 16 * 16,
        "stage2_block1/conv1": 16 * 16 * 9 * 16 * 32,
        "stage2_block1/conv2": 16 * 16 * 9 * 32 * 32,
        "stage2_block1/shortcut": 16 * 16 * 16 * 32,
        "stage3_block1/conv1": 8 * 8 * 9 * 32 * 64,
        "stage3_block1/conv2": 8 * 8 * 9 * 64 * 64,
        "stage3_block1/shortcut": 8 * 8 * 32 * 64,
        "classifier": 640,
    }
    strided = next(layer for layer in layers if layer.path == "stage2_block1/conv1")
    assert (strided.kernel, strided.stride, strided.groups) == ((3, 3), (2, 2), 1)
    assert (strided.input_size, strided.output_size) == ((32, 32), (16, 16))
    assert (strided.in_channels, strided.out_channels, strided.weights) == (16, 32, 9 * 16 * 32)


@pytest.mark.parametrize("depth", [8, 20])
def test_weights_equal_the_kernels_of_the_model(depth):
    model = ResNet(classes=10, depth=depth, width=8)
    layers = workload.trace(model, (16, 16, 3), train=False)
    assert len(layers) == depth + 2  # the shortcuts of two stages
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jax.numpy.zeros((1, 16, 16, 3)), train=False))
    kernels = [leaf.size for leaf in jax.tree.leaves(shapes["params"]) if leaf.ndim > 1]
    assert sum(layer.weights for layer in layers) == sum(kernels)


class Shared(nn.Module):
    """Runs one layer twice, and has a grouped convolution."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3), feature_group_count=4, name="grouped")(x)
        dense = nn.Dense(4, name="twice")
        return dense(dense(x))


def test_groups_and_shared_layers():
    grouped, twice = workload.trace(Shared(), (5, 5, 4))
    assert (grouped.groups, grouped.weights, grouped.macs) == (4, 9 * 4, 25 * 9 * 4)
    assert (twice.kind, twice.weights, twice.macs) == ("dense", 16, 2 * 25 * 16)


def test_a_model_without_layers_is_refused():
    class Nothing(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.relu(x)

    class OwnWeights(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x @ self.param("w", nn.initializers.ones, (4, 5))

    with pytest.raises(ValueError, match=r"the model has no layer of a kind that can be quantised$"):
        workload.trace(Nothing(), (4,))
    with pytest.raises(
        ValueError, match=r"20 of 20 MACs .* the model itself \(20\)\. Products with parameters of a model"
    ):
        workload.trace(OwnWeights(), (4,))


def test_ignored_layers_are_left_out_and_have_to_exist():
    model = ResNet(classes=10, depth=8, width=16)
    layers = workload.trace(model, (32, 32, 3), ignored=("shortcut$", "^stem"), train=False)
    assert len(layers) == 7
    with pytest.raises(ValueError, match=r"'shortcat' is in no layer's path; there are stem, stage1"):
        workload.trace(model, (32, 32, 3), ignored=("shortcat",), train=False)


def test_layers_of_every_kind_are_counted_under_their_parameters_path():
    class Everything(nn.Module):
        def setup(self):
            self.dense = nn.remat(nn.Dense)(8)
            self.einsum = nn.Einsum((8, 4), "abc,cd->abd")
            self.up = nn.ConvTranspose(3, (2,), strides=(2,))
            self.general = nn.DenseGeneral((2, 4), axis=-1)
            self.shared = [nn.Dense(4) for _ in range(2)]

        def encode(self, x):
            return self.einsum(self.dense(x))

        def __call__(self, x):
            x = self.shared[0](self.shared[1](self.shared[0](self.encode(x))))
            return self.up(self.general(x).reshape(1, 5, 8))

    layers = {layer.path: layer for layer in workload.trace(Everything(), (5, 8))}
    macs = {path: layer.macs for path, layer in layers.items()}
    expected = {"dense": 320, "einsum": 160, "shared_0": 160, "shared_1": 80, "general": 160, "up": 240}
    assert macs == expected
    params = Everything().init(jax.random.key(0), jax.numpy.zeros((1, 5, 8)))["params"]
    assert {path: layer.weights for path, layer in layers.items()} == {
        path: params[path]["kernel"].size for path in layers
    }


def test_products_of_activations_are_found_with_their_place():
    class Attention(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.MultiHeadDotProductAttention(num_heads=2, name="attention")(nn.Dense(8, name="in")(x))

    layers = workload.trace(Attention(), (5, 4), products=True)
    products = [layer for layer in layers if layer.kind == "product"]
    assert [layer.macs for layer in products if layer.weights == 0 and layer.in_channels in (4, 5)][:2] == [
        2 * 5 * 5 * 4,
        2 * 5 * 5 * 4,
    ]
    assert all(layer.path.startswith("attention") for layer in products)


def test_products_in_a_module_have_its_path():
    class Attention(nn.Module):
        @nn.compact
        def __call__(self, x):
            scores = Product(name="scores")("bqc,bkc->bqk", x, nn.Dense(4, name="key")(x))
            return Product(name="mixture")("bqk,bkc->bqc", nn.softmax(scores), x)

    layers = workload.trace(Attention(), (5, 4), products=True)
    assert [(layer.path, layer.kind, layer.macs, layer.weights) for layer in layers] == [
        ("key", "dense", 80, 16),
        ("scores", "product", 100, 0),
        ("mixture", "product", 100, 0),
    ]
    assert [layer.path for layer in workload.trace(Attention(), (5, 4))] == ["key"]


def test_inputs_may_be_whole_numbers():
    class Embedded(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3, name="head")(nn.Embed(7, 4)(x))

    (layer,) = workload.trace(Embedded(), (5,), dtype="int32")
    assert (layer.path, layer.macs) == ("head", 5 * 4 * 3)


def test_bit_operations_follow_equation_1():
    layers = workload.trace(ResNet(classes=10, depth=8, width=16), (32, 32, 3), train=False)
    space_formats = format_space("int_s")
    plan = format_plan(layers, space_formats)
    table = analytic.BIT_OPERATIONS.table(plan)
    genome = [i % 3 for i in range(len(layers))]
    expected = sum((4, 8, 16)[g] ** 2 * layer.macs for g, layer in zip(genome, layers, strict=True))
    assert pricing.price_layers(table, genome).sum() == expected
    macs = sum(layer.macs for layer in layers)
    assert pricing.reachable_interval(table, plan.space) == (16 * macs, 256 * macs)
    assert analytic.BIT_OPERATIONS.uniform(layers, parse_format("e4m3")) == 64 * macs
    assert plan.layer_formats(genome)["stage1_block1/conv1"] == "int8"


def macs_of(found):
    """MACs by path, and MACs outside by place."""
    return {layer.path: layer.macs for layer in found.layers}, dict(found.outside)


def test_layers_in_loops_are_one_layer_per_repetition():
    layers, outside = macs_of(workload.survey(unusual_networks.looped(), (64,)))
    assert layers == {**{f"blocks/fc[{i}]": 64 * 64 for i in range(6)}, "head": 640} and not outside
    layers, _ = macs_of(workload.survey(unusual_networks.nested(), (8,)))
    inner = {f"outer/inner/fc[{i},{j}]": 64 for i in range(2) for j in range(3)}
    assert layers == inner | {"outer/post[0]": 64, "outer/post[1]": 64}
    own_layers = {f"experts/{name}[{i}]": 5 * 8 * 32 for name in ("up", "down") for i in range(4)}
    found = workload.survey(unusual_networks.experts(), (5, 8))
    assert macs_of(found) == (own_layers, {"experts/scores": 4 * 25 * 8})
    found = workload.survey(unusual_networks.experts(), (5, 8), products=True)
    assert macs_of(found) == (own_layers | {f"experts/scores[{i}]": 25 * 8 for i in range(4)}, {})


@pytest.mark.parametrize("cell", [nn.GRUCell, nn.LSTMCell])
def test_recurrent_cells_run_once_per_step(cell):
    *steps, head = workload.trace(unusual_networks.recurrent(cell), (12, 8))
    assert {layer.runs for layer in steps} == {12} and head.runs == 1
    assert {layer.macs for layer in steps} == {12 * 8 * 16, 12 * 16 * 16}
    assert all(layer.macs == layer.runs * layer.weights for layer in steps)


def test_runs_are_counted_wherever_they_come_from():
    together, each = workload.trace(unusual_networks.frames(), (7, 16, 16, 3))
    assert (together.input_size, together.runs, together.macs) == ((16, 16), 7, 7 * 256 * 9 * 3 * 8)
    assert (each.input_size, each.runs, each.macs) == ((16, 16), 7, 7 * 256 * 9 * 8 * 4)
    (unknown,) = workload.trace(unusual_networks.UnknownToFlax(), (7, 16, 16, 3))
    assert dataclasses.replace(unknown, path=together.path) == together
    (twice,) = workload.trace(unusual_networks.twice(), (16, 16, 8))  # The largest run gives the sizes.
    assert (twice.input_size, twice.runs, twice.macs) == ((16, 16), 1.25, (256 + 64) * 9 * 8 * 8)


def test_names_may_have_dots_and_brackets_but_not_those_of_repetitions():
    layers, outside = macs_of(workload.survey(unusual_networks.named(), (8,)))
    assert layers == dict.fromkeys(("features.0", "2", "a b", "fc(1)"), 64)
    assert outside == {"features.1": 40}

    def like_a_repetition(x):
        return nn.Dense(8, name="fc[0]")(x)

    with pytest.raises(ValueError, match=r"fc\[0\]: names in brackets are those of repetitions in a loop: rename"):
        workload.trace(unusual_networks.Network(like_a_repetition), (8,))


def test_convolutions_of_every_kind():
    layers = {layer.path: layer for layer in workload.trace(unusual_networks.kinds(), (8, 8, 32))}
    plain, transposed = layers["plain"], layers["transposed"]
    assert {path: layer.kind for path, layer in layers.items() if layer.kind != "conv"} == {
        "local": "conv_local",
        "transposed": "conv_transpose",
    }
    assert [path for path, layer in layers.items() if layer.is_dilated] == ["dilated", "inserted"]
    assert layers["dilated"].macs == plain.macs == layers["local"].macs == 64 * plain.weights
    assert layers["local"].weights == 64 * plain.weights
    # Zeros between inputs are not multiplied.
    assert (transposed.output_size, transposed.macs, layers["inserted"].macs) == ((16, 16), plain.macs, plain.macs)


@pytest.mark.parametrize(
    ("network", "shape", "dtype", "outside"),
    [
        (unusual_networks.tied_head, (9,), "int32", {"embed": 9 * 64 * 32000}),
        (unusual_networks.tied_steps, (9,), "int32", {"decoder/embed": 9 * 16 * 100}),
        (unusual_networks.attention, (10, 24), "float32", {"attention": 2 * 10 * 10 * 24}),
        (unusual_networks.in_a_branch, (8,), "float32", {"branch": 2 * 64}),  # that of the costlier branch
        (
            lambda: unusual_networks.recurrent(nn.OptimizedLSTMCell),
            (12, 8),
            "float32",
            {"OptimizedLSTMCell_0": 12 * (8 + 16) * 64},
        ),
    ],
)
def test_what_is_in_no_layer_is_told(network, shape, dtype, outside):
    found = workload.survey(network(), shape, dtype=dtype)
    assert dict(found.outside) == outside
    ((place, macs),) = outside.items()
    share = macs / (macs + sum(layer.macs for layer in found.layers))
    assert found.figures() == {"macs": macs, "share": share, "places": [{"path": place, "macs": macs}]}
    assert json.loads(json.dumps(found.figures())) == found.figures()
    assert f"MACs ({share:.1%}) are in no listed layer" in found.remark()
    assert found.remark().endswith(f"{place} ({macs:,})")


def test_layers_that_are_left_out_are_outside():
    found = workload.survey(unusual_networks.looped(), (64,), ignored=("head",))
    assert dict(found.outside) == {"head": 640}
    searched = found.only(found.layers[:4])
    assert dict(searched.outside) == {"head": 640, "blocks/fc[4]": 4096, "blocks/fc[5]": 4096}
    assert searched.remark().endswith("blocks/fc[4] (4,096), blocks/fc[5] (4,096), head (640)")
    whole = workload.survey(unusual_networks.looped(), (64,))
    assert whole.remark() == "" and whole.figures() == {"macs": 0, "share": 0, "places": []}
