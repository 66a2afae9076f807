"""The controllers that a config can select by name, made from their settings in `config.controller`."""

from collections.abc import Callable, Sequence
from typing import Any

import optax
from ml_collections import ConfigDict

from fliqs_jax import fisher, reinforce
from fliqs_jax.controller import Controller
from fliqs_jax.reward import REWARDS, Reward
from fliqs_jax.schedule import ENTROPY_SCHEDULES
from hwcost import registry
from hwcost.format_plan import FormatPlan
from hwcost.pricing import Budget


def reward_of(config: ConfigDict) -> tuple[Reward, float]:
    """The reward function of a config, and γ."""
    settings = config.controller.reinforce
    arguments = ("quality", "relative_cost", "gamma")
    reward = registry.lookup_function("controller.reinforce.reward", settings.reward, REWARDS, arguments)
    return reward, settings.gamma


def _reinforce(config: ConfigDict, plan: FormatPlan, budgets: Sequence[Budget], total_steps: int) -> Controller:
    settings = config.controller.reinforce
    reward, gamma = reward_of(config)
    return reinforce.make_controller(
        plan.space,
        budgets,
        reward=reward,
        gamma=gamma,
        optimizer=optax.adam(settings.learning_rate, b1=settings.momentum),
        baseline_momentum=settings.baseline_momentum,
        entropy_schedule=registry.lookup_function(
            "controller.reinforce.entropy_schedule", settings.entropy_schedule, ENTROPY_SCHEDULES, ("progress", "end")
        ),
        entropy_end=settings.entropy_end,
        warmup_steps=round(settings.warmup_fraction * total_steps),
        total_steps=total_steps,
        cost_samples=settings.cost_samples,
        paired=settings.paired,
        within_budget=settings.within_budget and config.policy not in NO_SEARCH,
    )._replace(freeze_fraction=settings.freeze_fraction)


def _fisher(config: ConfigDict, plan: FormatPlan, budgets: Sequence[Budget], total_steps: int) -> Controller:
    del budgets
    settings = config.controller.fisher
    searched = [decision for decision in plan.architecture.space.decisions if len(decision.options) > 1]
    if searched:
        raise ValueError(
            f"policy='fisher': it scores formats alone, and {searched[0].name} is searched too: expected "
            "policy='reinforce', which samples within the budget with controller.reinforce.within_budget=True"
        )
    controller = fisher.make_controller(plan.option_bits(), total_steps=total_steps, examples=settings.examples)
    return controller._replace(freeze_fraction=settings.freeze_fraction)


Make = Callable[[ConfigDict, FormatPlan, Sequence[Budget], int], Controller]
"""`(config, plan, budgets, total_steps) -> controller`."""

CONTROLLERS: dict[str, Make] = {"reinforce": _reinforce, "fisher": _fisher}
NO_SEARCH = ("uniform", "fixed")  # policies without a controller; their steps have that of the paper


def make_controller(config: ConfigDict, plan: FormatPlan, budgets: Sequence[Budget], total_steps: int) -> Controller:
    """The controller that `config.policy` names; that of the paper for policies which have none.

    Raises:
      ValueError: a setting names what there is not.
    """
    makers = CONTROLLERS | dict.fromkeys(NO_SEARCH, _reinforce)
    make = registry.lookup_function("policy", config.policy, makers, ("config", "plan", "budgets", "total_steps"))
    made: Any = make(config, plan, budgets, total_steps)
    if not isinstance(made, Controller):
        raise ValueError(
            f"policy={config.policy!r}: expected a fliqs_jax.controller.Controller, got {type(made).__name__}"
        )
    return made
