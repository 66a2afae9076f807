"""Limits of a search: its budgets and targets in the units of their costs, and whether genomes can keep them."""

import math

import numpy as np
from ml_collections import ConfigDict

from fliqs_jax import assignment
from fliqs_jax.best_genome import best_within_budgets
from fliqs_jax.search import Search
from hwcost import pricing
from hwcost.cost_model import CostModel
from hwcost.costs import find_cost
from hwcost.format_plan import FormatPlan
from launch.training.budgets import BudgetSetting, budget_entries, read_budgets
from launch.training.controllers import NO_SEARCH
from launch.training.settings import ConfigError


def search_budgets(config: ConfigDict, plan: FormatPlan) -> tuple[dict[str, CostModel], tuple[pricing.Budget, ...]]:
    """Cost models that the config names, the main one first, and their budgets in the same order.

    Raises:
      ConfigError: no genome of the plan can meet one.
    """
    main = {"cost": config.cost, "target": config.target, "target_unit": config.target_unit}
    settings = read_budgets((main, *budget_entries(config.budgets)))
    costs = {setting.cost: find_cost(setting.cost) for setting in settings}
    return costs, tuple(_budget(config, plan, costs[setting.cost], setting) for setting in settings)


def _budget(config: ConfigDict, plan: FormatPlan, model: CostModel, setting: BudgetSetting) -> pricing.Budget:
    """Budget in the unit of its cost; raises ConfigError if no genome of the plan can meet it."""
    unit = setting._replace(target=1.0).amount(lambda fmt: model.uniform(plan.base_workload, fmt))
    target, table = setting.target * unit, model.table(plan)
    lowest, highest = pricing.reachable_interval(table, plan.space)
    pricing.check_total(setting.cost, lowest, highest)
    if not 0 < target < math.inf:
        raise ConfigError(f"target_unit={setting.target_unit!r}: {setting.cost} in this format is {unit:g}, no unit")
    # A learned or random search needs a target that genomes can meet; a fixed genome is only compared with it. Every
    # genome may stay below a further budget, but not below the main one.
    reachable = _reaches(lowest, target) and (setting.cost != config.cost or _reaches(target, highest))
    if config.policy != "fixed" and not reachable:
        raise ConfigError(
            f"target={setting.target:g} of {setting.cost} (in units of {setting.target_unit}) is out of reach: genomes "
            f"over {config.formats} cost from {lowest / unit:.4g} to {highest / unit:.4g}"
        )
    return pricing.Budget(table, target)


def _reaches(lower: float, higher: float) -> bool:
    return lower <= higher * (1 + assignment.ROUNDING)


def search_targets(config: ConfigDict, plan: FormatPlan, main: pricing.Budget) -> tuple[float, ...]:
    """The targets that training takes in turn, in the unit of the main cost; none if there is only one.

    Raises:
      ConfigError: one is there twice, or out of reach, or the policy takes one target.
    """
    numbers = config.targets
    if len({f"{target:g}" for target in numbers}) < len(numbers):
        raise ConfigError(f"targets={numbers}: one target is there twice")
    if numbers and config.policy == "uniform":
        raise ConfigError(f"targets={numbers}: a random search has one target; expected a policy such as 'fisher'")
    if numbers and config.policy not in NO_SEARCH and config.target not in numbers:
        raise ConfigError(f"target={config.target:g}: expected one of targets={numbers}, that of the work directory")
    unit = main.target / config.target
    lowest, highest = pricing.reachable_interval(main.table, plan.space)
    for target in numbers:
        if not (_reaches(lowest, target * unit) and _reaches(target * unit, highest)):
            raise ConfigError(
                f"targets={numbers}: {target:g} is out of reach: genomes cost from {lowest / unit:.4g} to "
                f"{highest / unit:.4g} (in units of {config.target_unit})"
            )
    return () if len(numbers) < 2 or config.policy in NO_SEARCH else tuple(target * unit for target in numbers)


def check_sampling(config: ConfigDict, search: Search) -> None:
    """Checks that what is sampled within budgets can be.

    Raises:
      ConfigError: it cannot, or the policy is frozen before it learns.
    """
    settings = config.controller.reinforce
    warmup = round(settings.warmup_fraction * search.total_steps)
    if config.policy == "reinforce" and search.freeze_step <= warmup:
        raise ConfigError(
            f"controller.reinforce.freeze_fraction={settings.freeze_fraction}: expected a later part of training than "
            f"controller.reinforce.warmup_fraction={settings.warmup_fraction}, before which nothing is learnt"
        )
    if search.targets and (config.policy == "reinforce" or not search.controller.within_budget):
        raise ConfigError(
            f"targets={config.targets}: the policy {config.policy!r} learns one target; expected one that samples "
            "within the budget for several, such as policy='fisher'"
        )
    try:
        for budgets in search.budgets_by_target if search.controller.within_budget else ():
            best_within_budgets(search.plan.space, np.zeros(search.plan.space.exists.shape), budgets)
    except ValueError as error:
        raise ConfigError(f"policy={config.policy!r}: {error}") from error
