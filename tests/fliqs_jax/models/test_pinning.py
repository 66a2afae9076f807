"""Families under rules, without running them; `test_families` runs one."""

import numpy as np

from apq_jax import architectures
from aqt_like.formats import format_space
from fliqs_jax.models import elastic
from fliqs_jax.models.pinning import pinned
from hwcost import pricing, workload
from hwcost.costs import COSTS
from hwcost.format_plan import format_plan
from tests.fliqs_jax.models.test_families import FAMILIES, TINY, random_genomes


def plan_of(family, shape):
    layers = workload.trace(family.largest, shape, train=False)
    return format_plan(layers, format_space("int_s"), (), elastic.architecture(family, layers))


def test_a_network_costs_what_it_costs_in_the_whole_family():
    family, shape = FAMILIES["mobilenetv2"]
    left = {"stage1_block1.width": (0,), "stage2_block1.width": (0, 1), "stage2_block2.kernel": (1,)}
    some = pinned(family, left)
    assert [len(d.options) for d in some.space.decisions] == [1, 3, 2, 3, 3, 1]
    assert some.largest.widths == (0.5, 1.0, 1.5)
    assert some.largest.kernels == (7, 7, 5)
    assert some.space.decode(some.base) == family.space.decode(family.base) | {
        "stage1_block1.width": "0.5",
        "stage2_block2.kernel": "5",
    }
    whole_plan, plan = plan_of(family, shape), plan_of(some, shape)
    formats = np.zeros(len(plan.workload), np.int32)
    for name in ("bit_operations", "bitfusion_latency"):
        whole_table, table = COSTS[name].table(whole_plan), COSTS[name].table(plan)
        for genome in random_genomes(some, 4):
            choices = whole_plan.space.encode(plan.space.decode([*formats, *genome]))
            assert pricing.price_exactly(table, [*formats, *genome]) == pricing.price_exactly(whole_table, choices)


def test_what_is_left_of_a_family_with_one_network_is_that_network():
    family, shape = FAMILIES["mobilenetv2"]
    alone = pinned(family, {d.name: (int(own),) for d, own in zip(family.space.decisions, family.base, strict=True)})
    assert workload.trace(alone.largest, shape, train=False) == workload.trace(TINY, shape, train=False)
    assert not alone.base.any()
    # Nothing is masked, and there is one kernel.
    assert not any(layer.kernel or layer.inputs.decisions or layer.outputs.decisions for layer in alone.layers)


def test_layers_beyond_the_deepest_are_gone_and_those_that_all_have_have_no_gate():
    family = architectures.find("digits").family
    name = next(layer.gate.decision for layer in family.layers if layer.gate)
    depths = family.space.decisions[family.space.index(name)].options
    gated = {layer.path: layer.gate.lowest for layer in family.layers if layer.gate and layer.gate.decision == name}
    for options in ((0,), (0, 1), tuple(range(1, len(depths)))):
        some = pinned(family, {name: options})
        gates = {layer.path: layer.gate for layer in some.layers if layer.path in gated}
        assert gates.keys() == {path for path, lowest in gated.items() if lowest <= max(options)}
        for path, gate in gates.items():
            there = [option >= gated[path] for option in options]
            assert gate is None if all(there) else gate.lowest == there.index(True)
