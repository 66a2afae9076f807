"""Families of which only some networks are allowed, such as those whose decisions rules pin."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import numpy as np

from fliqs_jax.models.elastic import Channels, ElasticLayer, Family, Gate
from hwcost.space import Decision, SearchSpace


def pinned(family: Family, allowed: Mapping[str, Sequence[int]]) -> Family:
    """The networks of a family with some of the options of some decisions.

    Its largest network has only what they need, and a layer that none of them has is gone. Where the base of the family
    is not among them, the base has the options next to it.

    Args:
      family: all networks.
      allowed: positions of the options that are left, ascending, by the name of the decision; one pins it.
    """
    kept = [tuple(allowed.get(d.name, range(len(d.options)))) for d in family.space.decisions]
    space = SearchSpace(
        tuple(
            Decision(decision.name, tuple(decision.options[option] for option in options))
            for decision, options in zip(family.space.decisions, kept, strict=True)
        )
    )

    def of_all(genome: np.ndarray) -> np.ndarray:
        """A genome in the space of the whole family."""
        return np.asarray([options[int(option)] for options, option in zip(kept, genome, strict=True)], np.int32)

    def network(genome: np.ndarray) -> nn.Module:
        return family.network(of_all(genome))

    def settings(genome: np.ndarray) -> dict[str, Any]:
        return family.settings(of_all(genome))

    nearest = [np.abs(np.asarray(options) - own).argmin() for options, own in zip(kept, family.base, strict=True)]
    left = dict(zip((decision.name for decision in space.decisions), kept, strict=True))
    layers = [_pinned_layer(layer, left) for layer in family.layers]
    return family._replace(
        space=space,
        largest=network(space.option_counts - 1),
        layers=tuple(layer for layer in layers if layer is not None),
        network=network,
        settings=settings,
        base=np.asarray(nearest, np.int32),
    )


def _pinned_layer(layer: ElasticLayer, left: Mapping[str, Sequence[int]]) -> ElasticLayer | None:
    """The layer with the options that are left; None if it is never there."""
    gate = layer.gate
    if gate:
        there = [option >= gate.lowest for option in left[gate.decision]]
        if not any(there):
            return None
        gate = None if all(there) else Gate(gate.decision, there.index(True))
    return layer._replace(
        inputs=_pinned_channels(layer.inputs, left),
        outputs=_pinned_channels(layer.outputs, left),
        kernel=layer.kernel if layer.kernel and len(left[layer.kernel]) > 1 else "",
        gate=gate,
    )


def _pinned_channels(channels: Channels, left: Mapping[str, Sequence[int]]) -> Channels:
    values = {
        decision: tuple(of_options[option] for option in left[decision])
        for decision, of_options in zip(channels.decisions, channels.values, strict=True)
    }
    chosen = {decision: each for decision, each in values.items() if len(each) > 1}
    least = max([channels.least, *(each[0] for each in values.values() if len(each) == 1)])
    return channels._replace(decisions=tuple(chosen), values=tuple(chosen.values()), least=least)
