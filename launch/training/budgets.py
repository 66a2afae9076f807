"""Budgets in configs and on command lines: a cost, its target, and the unit of the target.

A budget is a dict with the keys of `BudgetSetting`. A set of budgets that hold at the same time is a tuple of such
dicts, or a single dict; alternative sets, one network each, are a tuple of sets. On a command line, a budget is a
Python literal: `--budget="{'cost': 'bitfusion_latency', 'target': 0.2, 'target_unit': 'absolute'}"`.
"""

import ast
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from aqt_like.formats import LayerFormat, parse_layer_format

ABSOLUTE = "absolute"

_DICTS = (Mapping, ConfigDict)  # a config turns a dict into the latter


class BudgetSettingError(ValueError):
    """A budget cannot be read; the message quotes it."""


class BudgetSetting(NamedTuple):
    """A budget as written in a config.

    Attributes:
      cost: name of a cost for `hwcost.costs.find_cost`.
      target: target value of the cost, above 0.
      target_unit: a number format: the target is relative to the cost with this format in all layers; or `absolute`:
        the target has the unit of the cost.
    """

    cost: str
    target: float
    target_unit: str

    def amount(self, uniform_cost: Callable[[LayerFormat], float]) -> float:
        """Target in the unit of the cost.

        Args:
          uniform_cost: `(format) → cost` of the network with this format in all layers.

        Raises:
          UnknownFormatError: the unit is neither `absolute` nor a number format.
        """
        if self.target_unit == ABSOLUTE:
            return self.target
        return self.target * uniform_cost(parse_layer_format(self.target_unit))


def parse_budget(text: str) -> Any:
    """Parses the text of a command-line option as a budget or a tuple of budgets, which `read_budgets` then checks.

    Raises:
      BudgetSettingError: the text is no Python literal.
    """
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, RecursionError) as error:
        raise BudgetSettingError(_expected(text)) from error


def budget_entries(settings: Any) -> Sequence[Any]:
    """The entries of a set of budgets, unchecked: of a single dict, the dict itself.

    Raises:
      BudgetSettingError: `settings` is neither a dict nor a sequence.
    """
    entries = (settings,) if isinstance(settings, _DICTS) else settings
    if not isinstance(entries, Sequence) or isinstance(entries, str):
        raise BudgetSettingError(_expected(settings))
    return entries


def read_budgets(settings: Any) -> tuple[BudgetSetting, ...]:
    """Budgets that hold at the same time, from a dict or a sequence of dicts.

    Raises:
      BudgetSettingError: `settings` is anything else, an entry is no valid budget, or a cost occurs twice.
    """
    budgets = tuple(_read_budget(entry) for entry in budget_entries(settings))
    if len({budget.cost for budget in budgets}) < len(budgets):
        raise BudgetSettingError(f"budgets {settings}: one cost is there twice")
    return budgets


def read_alternatives(settings: Any) -> tuple[tuple[BudgetSetting, ...], ...]:
    """Alternative sets of budgets, one network each.

    Raises:
      BudgetSettingError: see `read_budgets`; also for an empty set, or a set that occurs twice.
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
    if not isinstance(entry, _DICTS) or set(entry) != set(BudgetSetting._fields):
        raise BudgetSettingError(_expected(entry))
    target = entry["target"]
    if isinstance(target, bool) or not isinstance(target, int | float) or not 0 < target <= sys.float_info.max:
        raise BudgetSettingError(f"budget {dict(entry)}: target {target!r} is no finite number above 0")
    if not isinstance(entry["cost"], str) or not isinstance(entry["target_unit"], str):
        raise BudgetSettingError(_expected(dict(entry)))
    return BudgetSetting(entry["cost"], float(target), entry["target_unit"])


def _expected(given: Any) -> str:
    written = dict(given) if isinstance(given, ConfigDict) else given
    return (
        f"budget {written!r}: expected {{'cost': NAME, 'target': NUMBER, 'target_unit': FORMAT or 'absolute'}}, as in "
        "{'cost': 'weight_bytes', 'target': 1.2, 'target_unit': 'int4'}"
    )
