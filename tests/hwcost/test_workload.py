import flax.linen as nn
import jax
import pytest

from aqt_like import formats
from fliqs_jax.models.resnet import ResNet
from hwcost import analytic, workload
from hwcost import table as table_lib


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

    with pytest.raises(ValueError, match="Nothing has no layer"):
        workload.trace(Nothing(), (4,))


def test_bit_operations_follow_equation_1():
    layers = workload.trace(ResNet(classes=10, depth=8, width=16), (32, 32, 3), train=False)
    space_formats = formats.format_space("int_s")
    space = analytic.format_space(layers, space_formats)
    table = analytic.bit_operations_table(layers, space, space_formats)
    genome = [i % 3 for i in range(len(layers))]
    expected = sum((4, 8, 16)[g] ** 2 * layer.macs for g, layer in zip(genome, layers, strict=True))
    assert table_lib.price_layers(table, genome).sum() == expected
    macs = sum(layer.macs for layer in layers)
    assert table_lib.reachable_interval(table, space) == (16 * macs, 256 * macs)
    assert analytic.uniform_bit_operations(layers, formats.parse("e4m3")) == 64 * macs
    assert analytic.layer_formats(space, layers, genome)["stage1_block1/conv1"] == "int8"
