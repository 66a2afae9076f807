"""Against APQ's published table, and against a derivation that takes one tile, one order and one loop at a time."""

import dataclasses
import itertools
import json
import math
import pathlib
import re

import flax.linen as nn
import numpy as np
import pytest

from aqt_like.formats import parse_format
from fliqs_jax import models
from hwcost import bitfusion, workload
from hwcost.bitfusion import Geometry
from tests import unusual_networks

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "bitfusion.json"
INT8 = parse_format("int8")


def parse(key):
    """APQ's key: in, out, size, kernel, stride, padding, groups, and the bits of weights and activations."""
    found = re.fullmatch(r"\((\d+), (\d+), (\d+), (\d+), (\d+), (\d+), (\d+)\)-W(\d)A(\d)", key)
    ins, outs, size, kernel, stride, padding, groups, weights, activations = map(int, found.groups())
    side = (size + 2 * padding - kernel) // stride + 1
    return Geometry(ins, outs, (side, side), (kernel, kernel), stride, groups), weights, activations


def compare(table):
    """Cycles must be equal; returns the relative errors of the energies."""
    errors = []
    for key, published in table.items():
        if not key.startswith("("):
            continue
        geometry, weights, activations = parse(key)
        found = bitfusion.cost(geometry, [weights], [activations])
        assert found.cycles[0] == round(published["latency"] * 500e3), key
        errors.append(abs(found.energy[0] * 1e-6 / published["energy"] - 1))
    return np.asarray(errors)


def test_published_latencies_are_met_to_the_cycle():
    errors = compare(json.loads(GOLDEN.read_text()))
    assert errors.mean() < 0.005 and errors.max() < 0.03


def test_the_whole_published_table(bitfusion_file):
    table = json.loads(bitfusion_file.read_text())
    errors = compare(table)
    assert len(errors) > 3000
    assert errors.mean() < 0.005 and errors.max() < 0.03


def test_the_published_first_and_last_convolution():
    head = bitfusion.cost(Geometry(27, 32, (112, 112), (1, 1), 1, 1), [8], [8])
    tail = bitfusion.cost(Geometry(320, 1280, (7, 7), (1, 1), 1, 1), [8], [8])
    assert (head.cycles[0], tail.cycles[0]) == (147_952, 40_804)


def test_mobilenetv2_costs_what_apq_says():
    model = models.create("mobilenetv2", classes=1000)
    layers = workload.trace(model, (224, 224, 3), train=False)
    found = {name: cost.uniform(layers, INT8) for name, cost in bitfusion.cost_models().items()}
    assert found["latency"] == pytest.approx(9.10, rel=0.005)
    assert found["energy"] == pytest.approx(12.46, rel=0.005)


def slow_cost(geometry, weight_bits, activation_bits, accelerator):
    """The rules of the model, spelt out."""
    widths = [next(s for s in (2, 4, 8, 16) if bits <= s) for bits in (weight_bits, activation_bits)]
    lanes = 16 * (8 / widths[0]) * (8 / widths[1])
    repeats, ins, outs = 1, geometry.in_channels, geometry.out_channels
    if geometry.groups > 1:
        ins = outs = int(lanes / 2)
        repeats = math.ceil(geometry.in_channels / ins)
    (height, width), (kh, kw), stride = geometry.output, geometry.kernel, geometry.stride

    def pad(size, multiple):
        return math.ceil(size / multiple) * multiple

    def doublings(unit, size):
        sizes = [unit]
        while sizes[-1] < size:
            sizes.append(2 * sizes[-1])
        return sizes

    best = None
    limits = {"a": accelerator.activation_buffer, "w": accelerator.weight_buffer, "o": accelerator.output_buffer}
    needs = {"a": "hwi", "w": "io", "o": "hwo"}
    for side, ic, oc in itertools.product(doublings(1, max(height, width)), doublings(1, ins), doublings(32, outs)):
        th, tw, ic, oc = min(side, height), min(side, width), min(ic, ins), min(oc, outs)  # noqa: PLW2901
        counts = {
            "h": math.ceil(height / th),
            "w": math.ceil(width / tw),
            "i": math.ceil(ins / ic),
            "o": math.ceil(outs / oc),
        }
        tiles = math.prod(counts.values())
        down, across = geometry.dilation
        area = ((th - 1) * stride + (kh - 1) * down + 1) * ((tw - 1) * stride + (kw - 1) * across + 1)
        tile = {"a": area * ic * activation_bits, "w": kh * kw * ic * oc * weight_bits, "o": th * tw * oc * 32}
        held = {
            "a": area * pad(ic, lanes) * widths[1],
            "w": pad(kh * kw * ic, lanes) * pad(oc, 32) * widths[0],
            "o": th * tw * pad(oc, 32) * 32,
        }
        if any(held[s] > limits[s] for s in "awo"):
            continue
        for order in itertools.permutations("hwio"):
            moved, resident = {}, {}
            for s in "awo":
                traffic, capacity, stays, kept = tile[s], held[s], True, tile[s]
                for loop in order:
                    if not stays:
                        traffic *= counts[loop]
                    elif loop in needs[s]:
                        traffic, capacity = traffic * counts[loop], capacity * counts[loop]
                        if capacity > limits[s]:
                            stays = False
                        else:
                            kept = traffic
                moved[s], resident[s] = traffic, kept
            bus = accelerator.bus_bits
            busy = tiles * math.ceil(oc / 32) * th * tw * kh * kw * math.ceil(ic / lanes)
            fill = math.ceil(sum(resident.values()) / bus) + math.ceil(resident["o"] / bus)
            transfer = math.ceil(sum(moved.values()) / bus) + math.ceil(moved["o"] / bus)
            cycles = max(busy + fill, transfer)
            steps = tiles * kh * kw * ic * th * tw
            energy = (
                0.4245 * cycles
                + 0.4855 * busy
                + 0.015 * (sum(moved.values()) + moved["o"])
                + 2.1366e-5 * steps * oc * weight_bits
                + 2.8916e-5 * moved["w"]
                + 5.9474e-5 * steps * math.ceil(oc / 32) * activation_bits
                + 1.13704e-4 * moved["a"]
                + 3.3155e-5 * moved["o"]
                + 7.3084e-5 * (moved["o"] + tiles * th * tw * oc * 32)
            )
            if best is None or (cycles, energy) < best:
                best = (cycles, energy)
    return repeats * best[0], repeats * best[1]


@pytest.mark.parametrize("seed", range(6))
def test_the_slow_derivation_agrees_also_where_nothing_was_published(seed):
    rng = np.random.default_rng(seed)
    depthwise = seed == 0
    ins = int(rng.integers(1, 200))
    geometry = Geometry(
        ins,
        ins if depthwise else int(rng.integers(1, 300)),
        tuple(rng.integers(1, 30, 2).tolist()),
        tuple(rng.integers(1, 6, 2).tolist()),
        int(rng.integers(1, 3)),
        ins if depthwise else 1,
        (2, 3) if seed % 2 else (1, 1),
    )
    accelerator = bitfusion.Accelerator(bus_bits=int(rng.choice([64, 192, 512])))
    pairs = [(2, 2), (4, 8), (6, 4), (8, 8), (16, 16), (16, 8)]
    found = bitfusion.cost(geometry, *zip(*pairs, strict=True), accelerator)
    expected = [slow_cost(geometry, weights, activations, accelerator) for weights, activations in pairs]
    np.testing.assert_array_equal(found.cycles, [cycles for cycles, _ in expected])
    np.testing.assert_allclose(found.energy, [energy for _, energy in expected], rtol=1e-9)


def test_a_better_accelerator_is_faster():
    layer = Geometry(256, 256, (28, 28), (3, 3), 1, 1)  # bound by its multiplications
    published = bitfusion.cost(layer, [8, 8, 4], [8, 4, 4]).cycles
    wider_bus = bitfusion.cost(layer, [8, 8, 4], [8, 4, 4], bitfusion.Accelerator(bus_bits=384))
    assert (wider_bus.cycles < published).all()
    twice_the_array = bitfusion.cost(layer, [8], [8], bitfusion.Accelerator(columns=64))
    assert published[0] / 2 <= twice_the_array.cycles[0] < 0.8 * published[0]


def spec(**changes):
    layer = workload.LayerSpec("conv", "conv", 3, 16, (32, 32), (16, 16), (3, 3), (2, 2), 1, 1, 1)
    return dataclasses.replace(layer, **changes)


def test_layers_become_what_the_array_computes():
    assert bitfusion.layer_geometry(spec()) == Geometry(27, 16, (16, 16), (1, 1), 1, 1)  # images are unrolled
    assert bitfusion.layer_geometry(spec(in_channels=16)) == Geometry(16, 16, (16, 16), (3, 3), 2, 1)
    dense = spec(kind="dense", kernel=(), stride=(), input_size=(197,), output_size=(197,))
    assert bitfusion.layer_geometry(dense) == Geometry(3, 16, (197, 1), (1, 1), 1, 1)


def milliseconds(layer):
    return float(bitfusion.cost_models()["latency"].layer_costs(layer, [INT8])[0])


def dense(ins, outs, *size):
    return spec(
        kind="dense", in_channels=ins, out_channels=outs, input_size=size, output_size=size, kernel=(), stride=()
    )


def test_dense_layers_over_several_axes_cost_what_plain_ones_do():
    (general,) = workload.trace(nn.DenseGeneral(100, axis=(-3, -2, -1)), (7, 7, 512))
    assert round(milliseconds(general), 4) == 0.2112 == round(milliseconds(dense(25088, 100)), 4)
    *projections, out = workload.trace(unusual_networks.attention(), (196, 768))
    for layer in (*projections, out):
        assert milliseconds(layer) == milliseconds(dense(768, 768, 196))
    assert milliseconds(dense(8, 8, 4, 6, 5)) == milliseconds(dense(8, 8, 24, 5))


def test_layers_in_parts_cost_the_sum_of_the_parts():
    (experts,) = workload.trace(unusual_networks.expert_einsum(), (4, 6, 8))
    assert experts.groups == 4
    assert milliseconds(experts) == pytest.approx(4 * milliseconds(dense(8, 16, 6)))
    local = {layer.path: layer for layer in workload.trace(unusual_networks.kinds(), (8, 8, 32))}["local"]
    assert milliseconds(local) == pytest.approx(64 * milliseconds(dense(9 * 32, 32)))


def test_a_layer_costs_as_often_as_it_runs():
    for cost in bitfusion.cost_models().values():
        once, often = (cost.layer_costs(spec(runs=runs), [INT8])[0] for runs in (1, 2.5))
        assert often == pytest.approx(2.5 * once)


def test_tiles_of_dilated_convolutions_hold_the_inputs_between_taps():
    plain = spec(in_channels=64, out_channels=64, stride=(1, 1))
    dilated = dataclasses.replace(plain, dilation=(2, 2))
    assert bitfusion.layer_geometry(dilated) == bitfusion.layer_geometry(plain)._replace(dilation=(2, 2))
    energies = [bitfusion.cost_models()["energy"].layer_costs(layer, [INT8]) for layer in (plain, dilated)]
    assert energies[0] < energies[1]
    with pytest.raises(ValueError, match=r"conv: Geometry.* not even the smallest tile fits"):
        bitfusion.cost_models()["latency"].layer_costs(dataclasses.replace(plain, dilation=(40, 40)), [INT8])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "product"}, "conv: BitFusion has no product"),
        ({"kind": "conv_transpose"}, r"conv: BitFusion has no conv_transpose from \(32, 32\) to \(16, 16\)"),
        ({"input_dilation": (2, 2)}, "conv: BitFusion has no conv over three axes or over a dilated input"),
        ({"output_size": (8, 8, 8)}, "conv: BitFusion has no conv over three axes or over a dilated input"),
        ({"stride": (1, 2)}, r"conv: BitFusion has no stride of \(1, 2\)"),
    ],
)
def test_layers_that_it_cannot_compute_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        bitfusion.layer_geometry(spec(**changes))


def test_formats_that_it_cannot_compute_are_named():
    latency = bitfusion.cost_models()["latency"]
    with pytest.raises(ValueError, match=r"conv: BitFusion computes integers of 2 to 16 bits, e4m3 is none"):
        latency.layer_costs(spec(), [INT8, parse_format("e4m3")])
    with pytest.raises(ValueError, match="1 bits: BitFusion computes integers of 2 to 16 bits"):
        bitfusion.storage_bits(1)
    with pytest.raises(ValueError, match="not even the smallest tile fits"):
        bitfusion.cost(Geometry(8, 8, (4, 4), (3, 3), 1, 1), [8], [8], bitfusion.Accelerator(output_buffer=64))
