"""What every cost that has a name must do, and the published figures of each."""

import dataclasses

import jax
import numpy as np
import pytest

from aqt_like.formats import format_space, parse_format, parse_layer_format
from fliqs_jax import models
from hwcost import carbon, fpga, gpu, measured_tables, pricing, workload
from hwcost.costs import COSTS
from hwcost.format_plan import format_plan
from tests import unusual_networks

LAYERS = workload.trace(models.create("cifar_resnet", classes=10), (32, 32, 3), train=False)
INTEGERS = format_space("int4,int6,int8")
PLAN = format_plan(LAYERS, INTEGERS, ("stage1: tie",))


@pytest.mark.parametrize("name", COSTS)
def test_every_cost_prices_genomes(name):
    model = COSTS[name]
    table = model.table(PLAN)
    for fmt in INTEGERS:
        genome = PLAN.uniform_genome(fmt.name)
        np.testing.assert_allclose(pricing.price_exactly(table, genome), model.uniform(LAYERS, fmt), rtol=1e-12)
    genomes = np.random.default_rng(0).integers(0, 3, (20, len(PLAN.space))).astype(np.int32)
    exact = [pricing.price_exactly(table, genome) for genome in genomes]
    price = jax.jit(lambda genome: pricing.price(table, genome))
    np.testing.assert_allclose([price(genome) for genome in genomes], exact, rtol=1e-5)
    assert price._cache_size() == 1
    np.testing.assert_allclose(jax.vmap(lambda genome: pricing.price(table, genome))(genomes), exact, rtol=1e-5)
    lowest, highest = pricing.reachable_interval(table, PLAN.space)
    assert lowest * (1 - 1e-9) <= min(exact) and max(exact) <= highest * (1 + 1e-9)
    if name != "bitfusion_energy":  # where six bits sometimes cost less than four
        extremes = [pricing.price_exactly(table, PLAN.uniform_genome(f)) for f in ("int4", "int8")]
        np.testing.assert_allclose((lowest, highest), extremes, rtol=1e-9)


def test_weights_and_inputs_are_priced_by_their_own_bits():
    layer = LAYERS[3]
    int4, int8, mixed = (parse_layer_format(name) for name in ("int4", "int8", "int4/int8"))

    def cost(name, fmt):
        return float(COSTS[name].layer_costs(layer, [fmt])[0])

    assert cost("bit_operations", mixed) == 4 * 8 * layer.macs
    assert cost("weight_bytes", mixed) == cost("weight_bytes", int4)
    assert cost("peak_activation_bytes", mixed) == cost("peak_activation_bytes", int8)
    for name in ("bitfusion_latency", "bitfusion_energy"):
        assert cost(name, int4) < cost(name, mixed) < cost(name, int8)
    assert cost("fpga_area", mixed) == cost("fpga_area", int8)
    table = measured_tables.Lut(
        "mine",
        "latency",
        "ms",
        {(measured_tables.layer_key(layer), bits): measured_tables.Entry(sum(bits)) for bits in ((4, 8), (8, 8))},
    )
    for fmt, expected in ((mixed, 12), (int4, 12), (int8, 16)):
        assert table.cost_model().layer_costs(layer, [fmt]) == expected


def test_a_layer_costs_as_often_as_it_runs_but_is_stored_once():
    int8 = parse_format("int8")
    step, _ = workload.trace(unusual_networks.recurrent(), (12, 8))[:2]
    once = dataclasses.replace(step, runs=1, macs=step.macs // 12)
    for name, model in COSTS.items():
        often = 1 if name in ("weight_bytes", "peak_activation_bytes", "fpga_area") else 12
        np.testing.assert_allclose(model.layer_costs(step, [int8]), often * model.layer_costs(once, [int8]))


def test_the_worst_of_several_budgets_counts():
    tables = [COSTS[name].table(PLAN) for name in ("bit_operations", "weight_bytes", "peak_activation_bytes")]
    genome = PLAN.uniform_genome("int8")
    exact = [pricing.price_exactly(table, genome) for table in tables]
    budgets = [
        pricing.Budget(table, cost / over) for table, cost, over in zip(tables, exact, (0.5, 1.5, 1.2), strict=True)
    ]
    np.testing.assert_allclose(pricing.price_relative(budgets, genome), 1.5, rtol=1e-6)


def test_fpga_area_is_table_2():
    """FLIQS, Table 2: of uniform and of mixed blocks, in thousands of LUTs."""
    model = models.create("resnet18", classes=1000)
    block = [layer for layer in workload.trace(model, (224, 224, 3), train=False) if "stage1_block1" in layer.path]
    plan = format_plan(tuple(block), format_space("int4,int5,int6,int7,int8"))
    table = fpga.AREA.table(plan)
    published = {(5, 5, 6): 45.9, (5, 6, 6): 47.1, **{(b,) * 3: area for b, area in fpga.PUBLISHED.items()}}
    for bits, area in published.items():
        genome = np.asarray([b - 4 for b in bits], np.int32)
        assert pricing.price_exactly(table, genome) == pytest.approx(area, rel=0.005)
    smooth = [40.724 + 26.848 * np.exp(0.634 * (bits - 8)) for bits in fpga.PUBLISHED]
    np.testing.assert_allclose(smooth, list(fpga.PUBLISHED.values()), rtol=0.02)
    with pytest.raises(ValueError, match="the published areas are for integers up to 8 bits, bf16 is none"):
        fpga.AREA.uniform(LAYERS, parse_format("bf16"))


@pytest.mark.parametrize(("part", "int4", "mixed"), [("rtx2080ti", 1.338, 1.303), ("a6000", 1.234, 1.213)])
def test_gpu_speedups_are_those_of_table_3(part, int4, mixed):
    """FLIQS, Table 3: int4 over int8, and the searched network, of which 92 % of the time is spent in int4 layers."""
    layers = workload.trace(models.create("resnet50", classes=1000), (224, 224, 3), train=False)
    plan = format_plan(layers, format_space("int4,int8"))
    table = COSTS[f"{part}_latency"].table(plan)
    eight, four = (plan.uniform_genome(name) for name in ("int8", "int4"))
    whole = pricing.price_exactly(table, eight)
    assert whole / pricing.price_exactly(table, four) == pytest.approx(int4)
    times = pricing.price_layers(table, eight)
    order = np.argsort(times)
    in_int8 = order[np.cumsum(times[order]) <= 0.08 * whole]
    genome = four.copy()
    genome[in_int8] = eight[in_int8]
    assert whole / pricing.price_exactly(table, genome) == pytest.approx(mixed, rel=0.01)
    ideal = COSTS[f"{part}_roofline"].table(plan)
    assert pricing.price_exactly(ideal, eight) / pricing.price_exactly(ideal, four) == pytest.approx(2, rel=0.01)


def test_gpus_give_no_credit_for_formats_that_they_do_not_have():
    part = gpu.PARTS["a100"]
    for name, bits in {"int3": 4, "int4": 4, "int5": 8, "int8": 8, "bf16": 16, "e2m1": 16, "e4m3": 16}.items():
        assert gpu.runs_as(part, parse_format(name)) == bits
    with pytest.raises(ValueError, match="fp32 is wider than the 16 bits"):
        gpu.runs_as(part, parse_format("fp32"))


def test_footprints_are_those_of_apqs_table_2():
    """GPU hours, pounds of CO2e, dollars from … to."""
    for hours, pounds, low, high in (
        (200, 56.72, 148, 496),
        (96, 27.23, 71, 238),
        (40, 11.34, 30, 99),
        (0.5, 0.14, 0.4, 1.2),
    ):
        found = carbon.footprint(hours * 3600, carbon.Rates())
        assert found.co2e_kilograms * carbon.POUNDS_PER_KILOGRAM == pytest.approx(pounds, rel=0.02)
        assert found.dollars == pytest.approx((low, high), rel=0.1)
    with pytest.raises(ValueError, match="expected no negative numbers"):
        carbon.footprint(-1, carbon.Rates())
