"""The ways of searching: jointly as APQ does, without transfer, and over architectures with the same bits everywhere.

Transfer is what APQ's Table 2 leaves out for "Ours-A"; bits that are the same everywhere are the fixed-precision
baselines of its Figures 5 and 6.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from apq_jax.network_space import NetworkSpace
from apq_jax.restricted import RestrictedSpace
from apq_jax.within_budgets import BudgetError, Space, Tables, cheapest
from launch.training.settings import ConfigError

JOINT, FROM_SCRATCH = "joint", "from_scratch"


class Way(NamedTuple):
    """A way of searching.

    Attributes:
      name: `joint`, `from_scratch`, or the format that all blocks have.
      space: what is searched.
      predictor: the kind of the predictor whose accuracies are maximised, of `fit_predictor.FILES`.
      sets: which sets of budgets a network of the space can meet, by number.
    """

    name: str
    space: Space
    predictor: str
    sets: tuple[int, ...]


def limits_of(budgets: Sequence[Mapping[str, float]], costs: Sequence[str]) -> np.ndarray:
    """The limits of costs in sets of budgets, float64[B, M]; infinite where a set has none."""
    return np.asarray([[budget.get(cost, np.inf) for cost in costs] for budget in budgets])


def find_ways(
    space: NetworkSpace,
    tables: Tables,
    budgets: Sequence[Mapping[str, float]],
    baselines: Sequence[str],
    say: Callable[[str], None],
) -> list[Way]:
    """The joint search, and the baselines that the config names (`search.baselines`).

    Raises:
      ConfigError: there is no such baseline, or no set of budgets that it can meet.
    """
    everything = tuple(range(len(budgets)))
    ways = [Way(JOINT, space, "quantized", everything)]
    for name in baselines:
        if name == FROM_SCRATCH:
            ways.append(Way(name, space, name, everything))
            continue
        restricted = with_fixed_bits(space, name)
        limits = limits_of(budgets, list(tables))
        sets = tuple(number for number in everything if _can_meet(restricted, tables, limits[number]))
        if not sets and budgets:
            raise ConfigError(f"search.baselines={name!r}: no network with {name} in all blocks meets a set of budgets")
        for number in sorted({*everything} - {*sets}):
            say(f"no network with {name} in all blocks meets the budgets {dict(budgets[number])}: it is left out there")
        ways.append(Way(name, restricted, "quantized", sets))
    return ways


def with_fixed_bits(space: NetworkSpace, name: str) -> RestrictedSpace:
    """The space with the format `name` in all blocks.

    Raises:
      ConfigError: it is no format of the space.
    """
    formats = [fmt.name for fmt in space.formats if fmt.weights == fmt.inputs]
    if name not in formats:
        raise ConfigError(f"search.baselines={name!r}: expected some of {', '.join([FROM_SCRATCH, *formats])}")
    decisions = space.search_space.decisions
    held = [d.options.index(name) if name in d.options else len(d.options) - 1 for d in decisions]
    kinds = {d.name.rpartition(".")[2] for d in decisions if name not in d.options}
    return RestrictedSpace(space, np.asarray(held, np.int32), kinds)


def _can_meet(space: RestrictedSpace, tables: Tables, limits: np.ndarray) -> bool:
    try:
        cheapest(space, tables, limits)
    except BudgetError:
        return False
    return True
