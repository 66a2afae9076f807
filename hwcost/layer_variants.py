"""Layers whose sizes are searched: what a layer is under each combination of the decisions that shape it."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from hwcost.layer_spec import LayerSpec
from hwcost.space import SearchSpace


class LayerVariants(NamedTuple):
    """What a layer may be.

    Attributes:
      decisions: names of the decisions that shape it.
      specs: the distinct layers that result; None for no layer, where a depth leaves it out.
      index: position in `specs`, int32 with one axis per decision, indexed by its option.
    """

    decisions: tuple[str, ...]
    specs: tuple[LayerSpec | None, ...]
    index: np.ndarray

    def chosen(self, options: Mapping[str, int]) -> LayerSpec | None:
        """The layer under the options of its decisions."""
        return self.specs[self.index[tuple(options[name] for name in self.decisions)]]

    def spread(self, costs: Sequence[np.ndarray]) -> np.ndarray:
        """Costs of `specs`, each of shape `[…]`, as costs of all combinations: the shape of `index`, then `[…]`."""
        return np.stack(costs)[self.index]


class Architecture(NamedTuple):
    """An architecture that is searched beside formats.

    Attributes:
      space: its decisions.
      base: option name of each, by name, of the network that the others are made from.
      variants: what each layer may be, by path; layers that no decision shapes are absent.
      settings: `(options int32[A]) → dict`, what builds the network that its decisions describe, as genome files hold
        it; of a network that is not searched, what a genome file said of it.
      relative_to: layers of the network that costs are told relative to; empty if it is that of `base`.
    """

    space: SearchSpace
    base: dict[str, str]
    variants: dict[str, LayerVariants]
    settings: Callable[[np.ndarray], dict[str, Any]]
    relative_to: tuple[LayerSpec, ...] = ()


NO_ARCHITECTURE = Architecture(SearchSpace(()), {}, {}, lambda _: {})


def resized(layer: LayerSpec, *, in_channels: int, out_channels: int, kernel: int) -> LayerSpec:
    """A dense layer or a convolution with other channels, and with a kernel of another size if it is not 0.

    A depthwise convolution keeps as many groups as it has channels; outputs have the same places.
    """
    sizes = (kernel,) * len(layer.kernel) if kernel else layer.kernel
    groups = in_channels if layer.groups > 1 else 1
    weights = math.prod(sizes) * in_channels // groups * out_channels
    return dataclasses.replace(
        layer,
        in_channels=in_channels,
        out_channels=out_channels,
        kernel=sizes,
        groups=groups,
        macs=layer.macs // layer.weights * weights,
        weights=weights,
    )
