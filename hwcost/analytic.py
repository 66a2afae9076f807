"""Costs that follow from arithmetic alone."""

import numpy as np

from aqt_like.formats import Format
from hwcost import table as table_lib
from hwcost.format_plan import FormatPlan
from hwcost.workload import LayerSpec, Workload


def bit_operations(layer: LayerSpec, fmt: Format) -> float:
    """Bit operations of a layer whose weights and input are both in `fmt`: bits² · MACs (FLIQS, Eq. 1)."""
    return fmt.bits**2 * layer.macs


def bit_operations_table(plan: FormatPlan) -> table_lib.CostTable:
    """The table of `bit_operations` over the genomes of a plan."""
    formats = {f.name: f for f in plan.formats}
    terms = []
    for layer, index in zip(plan.workload, plan.decision_of, strict=True):
        decision = plan.space.decisions[index]
        costs = [bit_operations(layer, formats[option]) for option in decision.options]
        terms.append(table_lib.Term((decision.name,), np.asarray(costs, np.float64)))
    return table_lib.build(plan.space, terms)


def uniform_bit_operations(workload: Workload, fmt: Format) -> float:
    """Total bit operations with every layer in `fmt`."""
    return sum(bit_operations(layer, fmt) for layer in workload)


def weight_bytes(layer: LayerSpec, fmt: Format) -> float:
    """Bytes of a layer's weights, densely packed, without scales and biases."""
    return layer.weights * fmt.bits / 8


def activation_bytes(layer: LayerSpec, fmt: Format) -> float:
    """Bytes of a layer's input and output for one example, both in `fmt`: what has to be held while it runs."""
    return (layer.input_values + layer.output_values) * fmt.bits / 8
