"""Budgets as configs and command lines name them: a cost, its target, and the unit of the target.

A budget is a dict with the keys of `BudgetSetting`. Budgets that hold at once are a tuple of such dicts; alternatives,
one network each, are a tuple of such tuples. A dict alone is a tuple of one. On a command line the same is written as
Python writes it: `--budget="{'cost': 'bitfusion_latency', 'target': 0.2, 'target_unit': 'absolute'}"`.
"""

import ast
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from aqt_like.formats import LayerFormat, parse_layer_format

ABSOLUTE = "absolute"


class BudgetSettingError(ValueError):
    """A budget that cannot be read; the message quotes it."""


class BudgetSetting(NamedTuple):
    """A budget as it is named.

    Attributes:
      cost: a name that `hwcost.costs.find_cost` knows.
      target: what it is to come to, above 0.
      target_unit: a number format, whose cost in all layers is the unit; or `absolute`, the unit of the cost itself.
    """

    cost: str
    target: float
    target_unit: str

    def amount(self, uniform_cost: Callable[[LayerFormat], float]) -> float:
        """The target in the unit of the cost.

        Args:
          uniform_cost: the cost of the network with every layer in a format.

        Raises:
          UnknownFormatError: the unit is no number format.
        """
        if self.target_unit == ABSOLUTE:
            return self.target
        return self.target * uniform_cost(parse_layer_format(self.target_unit))


def parse_budget(text: str) -> Any:
    """A budget, or several that hold at once, from the text that a command line gives.

    Raises:
      BudgetSettingError: no Python literal.
    """
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError) as error:
        raise BudgetSettingError(_expected(text)) from error


def read_budgets(settings: Any) -> tuple[BudgetSetting, ...]:
    """Budgets that hold at once, each for a cost of its own.

    Raises:
      BudgetSettingError: anything but dicts with the keys of `BudgetSetting`, or one cost twice.
    """
    entries = (settings,) if isinstance(settings, Mapping) else settings
    if not isinstance(entries, Sequence) or isinstance(entries, str):
        raise BudgetSettingError(_expected(settings))
    budgets = tuple(_read_budget(entry) for entry in entries)
    if len({budget.cost for budget in budgets}) < len(budgets):
        raise BudgetSettingError(f"budgets {settings}: one cost is there twice")
    return budgets


def read_alternatives(settings: Any) -> tuple[tuple[BudgetSetting, ...], ...]:
    """Sets of budgets, of which each is for a network of its own.

    Raises:
      BudgetSettingError: as `read_budgets`; an empty set, or a set twice.
    """
    if not isinstance(settings, Sequence) or isinstance(settings, str):
        raise BudgetSettingError(f"budgets {settings!r}: expected a tuple of sets of budgets. {_expected(settings)}")
    sets = tuple(read_budgets(entry) for entry in settings)
    if () in sets:
        raise BudgetSettingError(f"budgets {settings}: an empty set, which limits nothing")
    if len(set(sets)) < len(sets):
        raise BudgetSettingError(f"budgets {settings}: one set is there twice")
    return sets


def _read_budget(entry: Any) -> BudgetSetting:
    if not isinstance(entry, Mapping) or set(entry) != set(BudgetSetting._fields):
        raise BudgetSettingError(_expected(entry))
    target = entry["target"]
    if isinstance(target, bool) or not isinstance(target, int | float) or not 0 < target < math.inf:
        raise BudgetSettingError(f"budget {dict(entry)}: target {target!r} is no finite number above 0")
    if not isinstance(entry["cost"], str) or not isinstance(entry["target_unit"], str):
        raise BudgetSettingError(_expected(dict(entry)))
    return BudgetSetting(entry["cost"], float(target), entry["target_unit"])


def _expected(given: Any) -> str:
    return (
        f"budget {given!r}: expected {{'cost': NAME, 'target': NUMBER, 'target_unit': FORMAT or 'absolute'}}, as in "
        "{'cost': 'weight_bytes', 'target': 1.2, 'target_unit': 'int4'}"
    )
