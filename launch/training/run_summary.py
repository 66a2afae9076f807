"""Parts of the summary of a run: genome, formats and cost of its network, versions and devices."""

import importlib.metadata
import platform
from typing import Any

import numpy as np

from aqt_like.formats import parse_layer_format
from hwcost import allocation, pricing
from launch.training.budgets import ABSOLUTE
from launch.training.experiment import Experiment
from launch.training.mesh import device_text


def network_summary(experiment: Experiment, genome: np.ndarray) -> dict[str, Any]:
    """Formats of all layers and exact costs of a genome, int32[D], and what is in no layer."""
    chosen = experiment.plan.layer_formats(genome)
    budgets = [
        {
            "name": name,
            "unit": model.unit,
            "cost": pricing.price_exactly(budget.table, genome),
            "target": budget.target,
        }
        for (name, model), budget in zip(experiment.costs.items(), experiment.search.budgets, strict=True)
    ]
    main = budgets[0]
    terms = pricing.price_layers(experiment.search.budgets[0].table, genome).tolist()
    cost_of = dict(zip(experiment.search.paths, terms, strict=True))
    return {
        "cost": main["cost"],
        "target": main["target"],
        "genome": genome.tolist(),
        "relative_cost": main["cost"] / main["target"],
        "cost_name": main["name"],
        "cost_unit": main["unit"],
        "arithmetic": experiment.arithmetic.summary(experiment.search.input_quantization_step),
        "budgets": budgets,
        "decisions": [{"name": d.name, "options": list(d.options)} for d in experiment.plan.space.decisions],
        "layers": [
            {
                "path": layer.path,
                "format": chosen[layer.path],
                "bits": parse_layer_format(chosen[layer.path]).bits,
                "granularity": experiment.plan.granularity(layer.path),
                "channels": layer.out_channels,
                "kernel": list(layer.kernel),
                "macs": layer.macs,
                "weights": layer.weights,
                "cost": cost_of[layer.path],
                "cost_is_estimate": next(iter(experiment.costs.values())).estimates(layer),
            }
            for layer in experiment.plan.layers_of(genome).values()
        ],
        "call": experiment.search.model.remarks(),
        "outside": experiment.survey.figures(),
        "base": _base(experiment, genome),
        "rank_correlations": {
            part: found._asdict() for part, found in allocation.rank_correlations(experiment.plan, genome).items()
        },
    }


def _base(experiment: Experiment, genome: np.ndarray) -> dict[str, Any]:
    """The network that a search begins with, in one format, and what a genome's cost beyond its cost went into."""
    plan, model = experiment.plan, next(iter(experiment.costs.values()))
    unit = experiment.config.target_unit
    # An absolute target has no format to be relative to: the narrowest stands for it.
    narrowest = min(plan.formats, key=lambda fmt: fmt.bits)
    fmt = narrowest if unit == ABSOLUTE else parse_layer_format(unit)
    try:
        found = {
            "cost": model.uniform(plan.base_workload, fmt),
            "log_shares": allocation.allocation(plan, model, genome, fmt),
        }
    except ValueError as error:  # A table need not have the layers of the found network in this format.
        found = {"cost": None, "log_shares": None, "why_none": str(error)}
    layers = [{"path": layer.path, "channels": layer.out_channels, "macs": layer.macs} for layer in plan.base_workload]
    return {"format": fmt.name, **found, "layers": layers}


def environment_summary() -> dict[str, Any]:
    """Versions of packages, and devices of this process."""
    packages = ("jax", "flax", "optax", "orbax-checkpoint", "numpy")
    versions = {name: importlib.metadata.version(name) for name in packages}
    return {
        "versions": {"python": platform.python_version()} | versions,
        "device": device_text(),
    }
