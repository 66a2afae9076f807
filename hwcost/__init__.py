"""Hardware costs: search spaces and genomes, the layers of a model, and cost models. Public names: `__all__`."""

from hwcost.cost_model import CostModel, per_format
from hwcost.costs import COSTS, find_cost
from hwcost.format_plan import FormatPlan
from hwcost.space import Decision, SearchSpace
from hwcost.workload import LayerSpec, trace

__all__ = [
    "COSTS",
    "CostModel",
    "Decision",
    "FormatPlan",
    "LayerSpec",
    "SearchSpace",
    "find_cost",
    "per_format",
    "trace",
]
