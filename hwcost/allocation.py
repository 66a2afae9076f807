"""Where the cost of a network that was found went: into bits, channels, kernels or depth (FLIQS, A.7).

Costs of parts multiply, so their shares are of the logarithm of the cost over that of the base network.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from aqt_like.formats import LayerFormat, parse_layer_format
from hwcost.cost_model import CostModel
from hwcost.format_plan import FormatPlan
from hwcost.layer_spec import LayerSpec
from hwcost.layer_variants import Architecture

BITS, CHANNELS, KERNELS, DEPTH = PARTS = ("bits", "channels", "kernels", "depth")

LEAST_LAYERS = 3  # for a rank correlation: of two layers it is 1 or -1, whatever they have


class Correlation(NamedTuple):
    """A rank correlation (Spearman) over some layers; None where it is not defined.

    It is not where there are fewer than `LEAST_LAYERS`, or where all layers have the same.
    """

    rho: float | None
    layers: int


def log_shares(price: Callable[[frozenset[str]], float], parts: Sequence[str]) -> dict[str, float]:
    """The share of each of `parts` in log(price(all parts) / price(no part)), to which they sum.

    A share is what the part adds when it changes, on average over all orders in which parts can change (the Shapley
    value), so no order is preferred.

    Args:
      price: the cost of a network of which the named parts are as found, and the others as in the base.
      parts: names.

    Raises:
      ValueError: something costs nothing.
    """
    logs = {}
    for changed in itertools.chain.from_iterable(itertools.combinations(parts, n) for n in range(len(parts) + 1)):
        if (cost := price(frozenset(changed))) <= 0:
            raise ValueError(f"with {' and '.join(changed) or 'nothing'} as found, the network costs {cost:g}")
        logs[frozenset(changed)] = math.log(cost)
    shares = dict.fromkeys(parts, 0.0)
    orders = list(itertools.permutations(parts))
    for order in orders:
        for number, part in enumerate(order):
            before = frozenset(order[:number])
            shares[part] += (logs[before | {part}] - logs[before]) / len(orders)
    return shares


def allocation(plan: FormatPlan, model: CostModel, genome: np.ndarray, unit: LayerFormat) -> dict[str, float]:
    """The shares of bits, and of what else was searched, in the cost of a genome, int32[D]; see `log_shares`.

    The base is the base network with all layers in `unit`.

    Raises:
      ValueError: a network between the base and the one found has no cost, or one that is unknown.
    """
    searched = plan.architecture.space.decisions
    part_of = {decision.name: part_decided(plan.architecture, decision.name) for decision in searched}
    chosen = {path: parse_layer_format(name) for path, name in plan.layer_formats(genome).items()}

    def price(changed: frozenset[str]) -> float:
        mixed = np.asarray(genome).copy()
        for decision in searched:
            if part_of[decision.name] not in changed:
                own = decision.options.index(plan.architecture.base[decision.name])
                mixed[plan.space.index(decision.name)] = own
        layers = plan.layers_of(mixed)
        formats = chosen if BITS in changed else dict.fromkeys(layers, unit)
        return model.over_layers([float(model.layer_costs(e, [formats[p]])[0]) for p, e in layers.items()])

    return log_shares(price, [part for part in PARTS if part == BITS or part in part_of.values()])


def part_decided(architecture: Architecture, decision: str) -> str:
    """What a decision of an architecture changes: `"depth"`, `"channels"` or `"kernels"`, the first that it does.

    Read off the layers, so any family's decisions have one. One that shapes no layer counts to channels.
    """
    of_layer: dict[str, Callable[[LayerSpec | None], object]] = {
        DEPTH: lambda layer: layer is not None,
        CHANNELS: lambda layer: layer and (layer.in_channels, layer.out_channels),
        KERNELS: lambda layer: layer and layer.kernel,
    }
    shaped = [each for each in architecture.variants.values() if decision in each.decisions]
    for part, read in of_layer.items():
        for variants in shaped:
            seen = [read(layer) for layer in variants.specs]
            numbers = np.asarray([seen.index(value) for value in seen])[variants.index]
            if np.ptp(numbers, axis=variants.decisions.index(decision)).any():
                return part
    return CHANNELS


def rank_correlations(plan: FormatPlan, genome: np.ndarray) -> dict[str, Correlation]:
    """The rank correlations of the bits of layers with their channels and with their kernels (FLIQS, A.7).

    Channels are those that a layer puts out, relative to the base; over the layers of which they are searched. Kernels
    are sizes, over the layers of which those are searched. Without an architecture, there are none.
    """
    formats, layers = plan.layer_formats(genome), plan.layers_of(genome)
    base = {layer.path: layer for layer in plan.base_workload}
    pairs: dict[str, list[tuple[int, float]]] = {CHANNELS: [], KERNELS: []}
    for path, variants in plan.architecture.variants.items():
        there = [layer for layer in variants.specs if layer]
        if path not in layers or path not in formats:
            continue
        bits, layer = parse_layer_format(formats[path]).bits, layers[path]
        if len({each.out_channels for each in there}) > 1 and path in base:
            pairs[CHANNELS].append((bits, layer.out_channels / base[path].out_channels))
        if len({each.kernel for each in there}) > 1:
            pairs[KERNELS].append((bits, float(np.prod(layer.kernel))))
    return {name: _spearman(found) for name, found in pairs.items() if found}


def _spearman(pairs: Sequence[tuple[int, float]]) -> Correlation:
    if len(pairs) < LEAST_LAYERS or any(len(set(values)) < 2 for values in zip(*pairs, strict=True)):
        return Correlation(None, len(pairs))
    return Correlation(float(stats.spearmanr(pairs).statistic), len(pairs))
