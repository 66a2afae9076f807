"""Cost models: the cost of a layer in each format, and the total cost of a network.

`config.cost` names a cost model: one of `costs.COSTS`, a table's file, or the user's own as `package.module:name`.
Tables, pricing, targets and reports are the same for all of them.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from aqt_like.formats import Format, LayerFormat
from hwcost import pricing
from hwcost.format_plan import FormatPlan
from hwcost.layer_variants import LayerVariants
from hwcost.workload import LayerSpec, Workload

LayerCosts = Callable[[LayerSpec, Sequence[LayerFormat]], np.ndarray]


class CostModel(NamedTuple):
    """A cost model of a device or a memory.

    Attributes:
      layer_costs: `(layer, formats) → float64[K]`, cost of a layer in each format of weights and input; it raises a
        ValueError that names the layer if the cost is unknown.
      unit: unit of the cost.
      total: how layer costs form the total of a network: `"sum"`, `"mean"` or `"peak"` (the largest).
      estimates: whether the cost of a layer is estimated from other layers, which reports state.
    """

    layer_costs: LayerCosts
    unit: str
    total: Literal["sum", "mean", "peak"] = "sum"
    estimates: Callable[[LayerSpec], bool] = lambda _: False

    def table(self, plan: FormatPlan) -> pricing.CostTable:
        """The cost table of a plan: one term per layer, the C_l of FLIQS, Eq. 1.

        Raises:
          ValueError: the cost is a mean over layers whose number is searched.
        """
        formats = {f.name: f for f in plan.formats}
        share = len(plan.workload) if self.total == "mean" else 1
        terms = []
        for layer, index in zip(plan.workload, plan.decision_of, strict=True):
            decision = plan.space.decisions[index]
            options = [formats[option] for option in decision.options]
            variants = plan.architecture.variants.get(layer.path, LayerVariants((), (layer,), np.zeros((), np.int32)))
            if self.total == "mean" and None in variants.specs:
                raise ValueError("a mean over layers cannot be searched by where the number of layers is searched")
            costs = [self.layer_costs(spec, options) if spec else np.zeros(len(options)) for spec in variants.specs]
            values = variants.spread([np.asarray(cost, np.float64) for cost in costs]) / share
            terms.append(pricing.Term((*variants.decisions, decision.name), values))
        return pricing.build(plan.space, terms, peak=self.total == "peak")

    def uniform(self, workload: Workload, fmt: LayerFormat) -> float:
        """The cost of a network with all layers in `fmt`."""
        return self.over_layers([float(self.layer_costs(layer, [fmt])[0]) for layer in workload])

    def over_layers(self, costs: Sequence[float]) -> float:
        """The total cost of a network from the costs of its layers."""
        return {"sum": sum(costs), "mean": sum(costs) / len(costs), "peak": max(costs)}[self.total]


def per_format(layer_costs: Callable[[LayerSpec, LayerFormat], float]) -> LayerCosts:
    """A `layer_costs` function from a function that computes the cost in one format."""
    return lambda layer, formats: np.asarray([layer_costs(layer, fmt) for fmt in formats], np.float64)


def needed_width(fmt: Format) -> int:
    """The bits of the arithmetic that computes `fmt`: floats of fewer than 16 bits run as 16-bit floats."""
    return fmt.bits if fmt.is_integer else max(fmt.bits, 16)


def width_on_device(widths: Iterable[int], fmt: LayerFormat) -> int | None:
    """The narrowest of a device's widths, in bits, that computes `fmt`; None if all are too narrow.

    A format that the device lacks therefore costs as much as the next wider one.
    """
    needed = max(needed_width(fmt.weights), needed_width(fmt.inputs))
    return min((width for width in widths if width >= needed), default=None)
