import re

import pytest
from ml_collections import ConfigDict

from launch.training.budgets import BudgetSetting, BudgetSettingError, parse_budget, read_alternatives, read_budgets

LATENCY = {"cost": "bitfusion_latency", "target": 8, "target_unit": "absolute"}
WEIGHTS = {"cost": "weight_bytes", "target": 1.2, "target_unit": "int4"}


def test_budgets_that_hold_at_once_and_alternatives():
    assert read_budgets(()) == ()
    both = (BudgetSetting("bitfusion_latency", 8.0, "absolute"), BudgetSetting("weight_bytes", 1.2, "int4"))
    assert read_budgets((LATENCY, WEIGHTS)) == both
    assert read_budgets(LATENCY) == read_budgets(ConfigDict(LATENCY)) == both[:1]
    assert read_budgets((ConfigDict(LATENCY), WEIGHTS)) == both
    with pytest.raises(BudgetSettingError, match=r"budget {'cost': 'weight_bytes'}: expected"):
        read_budgets(ConfigDict({"cost": "weight_bytes"}))
    assert read_alternatives([[LATENCY, WEIGHTS], LATENCY]) == (both, both[:1])


def test_a_command_line_says_the_same():
    assert read_alternatives([parse_budget(str(LATENCY)), parse_budget(str((LATENCY, WEIGHTS)))]) == read_alternatives(
        (LATENCY, (LATENCY, WEIGHTS))
    )
    with pytest.raises(BudgetSettingError, match=r"'bitfusion_latency=8': expected {'cost': NAME"):
        parse_budget("bitfusion_latency=8")


def test_targets_in_units_of_a_format():
    (absolute,), (weights,) = read_budgets(LATENCY), read_budgets(WEIGHTS)

    def uniform_cost(fmt):
        return 100.0 * fmt.bits

    assert absolute.amount(uniform_cost) == 8
    assert weights.amount(uniform_cost) == 1.2 * 400


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("weight_bytes: 1.2 int4", "budget 'weight_bytes: 1.2 int4': expected {'cost': NAME, 'target'"),
        (("weight_bytes",), "budget 'weight_bytes': expected {'cost'"),
        (7, "budget 7: expected {'cost'"),
        ({"cost": "weight_bytes", "target": 1.2}, "expected {'cost'"),
        (WEIGHTS | {"target_units": "int4"}, "expected {'cost'"),
        (WEIGHTS | {"target": 0}, "target 0 is no finite number above 0"),
        (WEIGHTS | {"target": float("nan")}, "target nan is no finite number"),
        (WEIGHTS | {"target": float("inf")}, "target inf is no finite number"),
        (WEIGHTS | {"target": True}, "target True is no finite number"),
        (WEIGHTS | {"target": "1.2"}, "target '1.2' is no finite number"),
        (WEIGHTS | {"target_unit": 4}, "expected {'cost'"),
        ((WEIGHTS, WEIGHTS | {"target": 2.0}), "one cost is there twice"),
    ],
)
def test_anything_else_is_refused(settings, message):
    with pytest.raises(BudgetSettingError, match=re.escape(message)):
        read_budgets(settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (LATENCY, "expected a tuple of sets of budgets"),
        (((LATENCY,), ()), "an empty set"),
        (((LATENCY,), LATENCY), "one set is there twice"),
    ],
)
def test_alternatives_are_sets_that_differ(settings, message):
    with pytest.raises(BudgetSettingError, match=message):
        read_alternatives(settings)
