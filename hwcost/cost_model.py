"""Costs by name: what each prices a layer at, and how a network's total follows.

A cost model is a function of a layer and formats, here or anywhere: `config.cost = "package.module:name"` names one of
the user's. Everything else (tables, pricing, targets, reports) is the same for all.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from aqt_like.formats import Format, LayerFormat
from hwcost import pricing
from hwcost.format_plan import FormatPlan
from hwcost.workload import LayerSpec, Workload

LayerCosts = Callable[[LayerSpec, Sequence[LayerFormat]], np.ndarray]


class CostModel(NamedTuple):
    """What a device or a memory charges.

    Attributes:
      layer_costs: `(layer, formats) → float64[K]`, the layer's cost with weights and input in each format. Raises
        ValueError, naming the layer, where it cannot tell.
      unit: of the cost.
      total: of a network over its layers: `"sum"`, `"mean"` or `"peak"`, which is the dearest layer.
      estimates: whether a layer's cost is an estimate from that of other layers; reports say so.
    """

    layer_costs: LayerCosts
    unit: str
    total: Literal["sum", "mean", "peak"] = "sum"
    estimates: Callable[[LayerSpec], bool] = lambda _: False

    def table(self, plan: FormatPlan) -> pricing.CostTable:
        """Prices for the genomes of a plan."""
        formats = {f.name: f for f in plan.formats}
        share = len(plan.workload) if self.total == "mean" else 1
        terms = []
        for layer, index in zip(plan.workload, plan.decision_of, strict=True):
            decision = plan.space.decisions[index]
            costs = self.layer_costs(layer, [formats[option] for option in decision.options])
            terms.append(pricing.Term((decision.name,), np.asarray(costs, np.float64) / share))
        return pricing.build(plan.space, terms, peak=self.total == "peak")

    def uniform(self, workload: Workload, fmt: LayerFormat) -> float:
        """The cost of a network with every layer in `fmt`."""
        return self.over_layers([float(self.layer_costs(layer, [fmt])[0]) for layer in workload])

    def over_layers(self, costs: Sequence[float]) -> float:
        """The total of what the layers cost."""
        return {"sum": sum(costs), "mean": sum(costs) / len(costs), "peak": max(costs)}[self.total]


def per_format(layer_costs: Callable[[LayerSpec, LayerFormat], float]) -> LayerCosts:
    """The `layer_costs` of a function that prices one format at a time."""
    return lambda layer, formats: np.asarray([layer_costs(layer, fmt) for fmt in formats], np.float64)


def needed_width(fmt: Format) -> int:
    """The bits that an arithmetic unit of common widths needs for `fmt`: floats of few bits run as 16-bit ones."""
    return fmt.bits if fmt.is_integer else max(fmt.bits, 16)


def width_on_device(widths: Iterable[int], fmt: LayerFormat) -> int | None:
    """The narrowest of a device's widths that computes `fmt`, so that formats that it does not have gain nothing.

    None where all are too narrow.
    """
    needed = max(needed_width(fmt.weights), needed_width(fmt.inputs))
    return min((width for width in widths if width >= needed), default=None)
