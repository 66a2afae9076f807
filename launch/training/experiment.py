"""Experiments: checks all settings of a config, before data is read or anything is compiled, and builds the search."""

import dataclasses
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from aqt_like import calibration, format_choice, gradients
from aqt_like.calibration import CRITERIA, Criterion
from aqt_like.formats import LayerFormat, format_space, parse_layer_format
from aqt_like.interception import Quantizer, kernel_clip, weight_clips
from fliqs_jax import assignment, models
from fliqs_jax.models import elastic, pretrained
from fliqs_jax.models.elastic import Family, Params, Weights
from fliqs_jax.search import Search
from hwcost import pricing, workload
from hwcost.cost_model import CostModel
from hwcost.costs import find_cost
from hwcost.format_plan import USUAL_GRANULARITY, FormatPlan, format_plan
from hwcost.genome_file import Genome, GenomeFileError, names_genome_file, read_genome
from hwcost.layer_variants import NO_ARCHITECTURE
from hwcost.workload import Survey
from launch import data
from launch.training import optimizers
from launch.training.budgets import BudgetSetting, budget_entries, read_budgets
from launch.training.compute import Arithmetic, choose_arithmetic
from launch.training.controllers import NO_SEARCH, make_controller
from launch.training.learning_task import Task, make_task
from launch.training.settings import PRECOMPUTED, ConfigError, check_settings, check_steps

SEARCHED, RANDOM_SEARCH, UNIFORM, FIXED = KINDS = ("searched", "random_search", "uniform", "fixed")
"""Kinds of runs: a search, a random search, a uniform baseline with one format in all layers, or a given genome."""


@dataclasses.dataclass(frozen=True)
class Trial:
    """One network to train. The trials of an experiment differ only in the policy and share its compiled step.

    Attributes:
      name: title in reports.
      kind: one of `KINDS`.
      directory: run directory, relative to the work directory.
      config: config of this trial.
      genome: int32[D] for policy `fixed`, else None.
      ends_as: the experiment of the network that the trial ends as, where it trains it as a part of a larger one.
    """

    name: str
    kind: str
    directory: str
    config: ConfigDict
    genome: np.ndarray | None
    ends_as: "Experiment | None" = None


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A checked config and the objects that it describes, without data or weights.

    Attributes:
      config: the config as given.
      source: data set.
      task: what is learnt of it.
      plan: search space, and the meaning of its genomes.
      survey: the searched layers, and what the network computes outside of them.
      costs: cost models by name, in the order of `search.budgets`.
      search: definition of the compiled step.
      clip_multiples: initial clip multiples.
      clip_criterion: criterion by which clip multiples are optimised on a training batch before inputs are quantised
        (FLIQS, §3, "Switchable Clipping"); None keeps the precomputed multiples.
      trials: networks to train.
      arithmetic: how products are computed on this platform.
      weights: what trials start from, weights and batch statistics of a family, on the host; None: as the config says.
    """

    config: ConfigDict
    source: data.Source
    task: Task
    plan: FormatPlan
    survey: Survey
    costs: dict[str, CostModel]
    search: Search
    clip_multiples: format_choice.ClipMultiples
    clip_criterion: Criterion | None
    trials: tuple[Trial, ...]
    arithmetic: Arithmetic
    weights: tuple[Weights, Params] | None = None


def prepare_experiment(
    config: ConfigDict, source: data.Source | None = None, *, family: Family | None = None
) -> Experiment:
    """Checks `config` and prepares the experiment, within seconds.

    Args:
      config: its settings.
      source: replaces the data set of `config.data`.
      family: networks of which the model of the config is the largest: its decisions are searched as well.

    Raises:
      ConfigError, data.DataError, formats.UnknownFormatError: a setting cannot be used; the message names it.
    """
    check_settings(config)
    given = _given_genome(config)
    formats = _formats(config, given)
    source = source or data.find(config.data)
    _check_examples(config, source)
    settings = config.model.to_dict()
    network = models.find(settings["name"])
    model = models.create(settings.pop("name"), classes=source.classes, **settings)
    buckets = getattr(model, "buckets", None)
    if buckets is not None and buckets < config.data.get("buckets", 0):
        raise ConfigError(f"model.buckets={buckets}: expected at least data.buckets={config.data.buckets}")
    task = _task(config, model, source)
    family = family or _family(config, model)
    _check_pretrained(config, model, source)
    model = family.largest if family else model
    found = _survey(config, model, network.uncounted, source.example)
    architecture = elastic.architecture(family, found.layers) if family else NO_ARCHITECTURE
    plan = format_plan(found.layers, formats, config.rules, architecture)
    costs, budgets = _budgets(config, plan)
    arithmetic = choose_arithmetic(config, plan)
    steps_per_epoch = (source.train_examples - config.data.valid_examples) // config.batch_size
    total_steps = check_steps("epochs", config.epochs, config.epochs * steps_per_epoch)
    search = Search(
        model=model,
        plan=plan,
        bank=format_choice.format_bank(formats, use_unsigned=config.unsigned_inputs),
        budgets=budgets,
        optimizer=optimizers.weight_optimizer(config.optimizer, total_steps),
        loss=task.loss,
        quality=task.quality,
        targets=_targets(config, plan, budgets[0]),
        controller=make_controller(config, plan, budgets, total_steps),
        total_steps=total_steps,
        # Inputs are profiled for at least one step before they are quantised.
        input_quantization_step=max(round(config.input_quantization_fraction * total_steps), 1),
        profile_steps=max(round(config.profile_fraction * total_steps), 1),
        quantizer=_quantizer(config, plan, arithmetic, elastic=family is not None),
        family=family,
        joint_steps=round(config.controller.reinforce.warmup_fraction * total_steps),
    )
    _check_sampling(config, search)
    multiples = format_choice.precomputed_clip_multiples(
        formats, len(plan.workload), config.clip.distribution, use_unsigned=config.unsigned_inputs
    )
    return Experiment(
        config=config,
        source=source,
        task=task,
        plan=plan,
        survey=found.only(plan.workload),
        costs=costs,
        search=search,
        clip_multiples=multiples,
        clip_criterion=None if config.clip.source == PRECOMPUTED else CRITERIA[config.clip.source],
        trials=_trials(config, plan, given, family),
        arithmetic=arithmetic,
    )


def _check_examples(config: ConfigDict, source: data.Source) -> None:
    """Checks that there is at least one batch of training examples and one of validation examples."""
    for key, available in (
        ("batch_size", source.train_examples - config.data.valid_examples),
        ("valid_batch_size", config.data.valid_examples),
    ):
        if config[key] > available:
            raise ConfigError(
                f"{key}={config[key]}: there are {available} such examples, with data.valid_examples="
                f"{config.data.valid_examples} of {source.train_examples} set aside for validation"
            )


def _task(config: ConfigDict, model: nn.Module, source: data.Source) -> Task:
    """The loss and the quality of a config, checked with the model and the data."""
    try:
        return make_task(config, model, source)
    except data.DataError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _survey(config: ConfigDict, model: nn.Module, uncounted: Sequence[str], example: jax.ShapeDtypeStruct) -> Survey:
    """Layers whose formats can be searched, and what is outside of them."""
    found = workload.survey(
        model,
        example.shape,
        dtype=example.dtype,
        ignored=uncounted,
        products=config.products,
        **models.mode(model, train=False),
    )
    if unnamed := [layer.path for layer in found.layers if ":" in layer.path]:
        raise ConfigError(
            f"products=True: {', '.join(unnamed)} cannot be quantised from outside: write them with "
            "aqt_like.interception.Product, or leave products in float"
        )
    return found


def _family(config: ConfigDict, model: nn.Module) -> Family | None:
    """The family whose architecture is searched; None if only formats are."""
    if not config.architecture:
        return None
    if config.init_from:
        raise ConfigError(f"init_from={config.init_from!r}: with an architecture to search, training starts anew")
    if config.clip.source != PRECOMPUTED:
        raise ConfigError(
            f"clip.source={config.clip.source!r}: expected {PRECOMPUTED!r}, since the tensors of a network whose "
            "architecture is searched have other values at each step"
        )
    try:
        return models.family(config.model.name, model, config.architecture.to_dict())
    except ValueError as error:
        raise ConfigError(f"architecture: {error}") from error


def _quantizer(config: ConfigDict, plan: FormatPlan, arithmetic: Arithmetic, *, elastic: bool) -> Quantizer:
    statistic = calibration.root_mean_square_of_present if elastic else calibration.root_mean_square
    clips = weight_clips(plan.granularity_of, statistic)
    estimator = gradients.ewgs(config.ewgs_strength) if config.ewgs_strength else gradients.straight_through
    return Quantizer(
        estimator,
        weight_clip=kernel_clip(USUAL_GRANULARITY, statistic),
        weight_clip_of=clips,
        operands=jnp.dtype(arithmetic.operands),
        precision=arithmetic.precision,
    )


def _check_pretrained(config: ConfigDict, model: nn.Module, source: data.Source) -> None:
    if config.init_from:
        inputs = jnp.zeros((1, *source.example.shape), source.example.dtype)
        shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), inputs, **models.mode(model, train=False)))
        pretrained.load(pathlib.Path(config.init_from), config.model.name, shapes)


def _budgets(config: ConfigDict, plan: FormatPlan) -> tuple[dict[str, CostModel], tuple[pricing.Budget, ...]]:
    """Cost models that the config names, the main one first, and their budgets in the same order."""
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


def _targets(config: ConfigDict, plan: FormatPlan, main: pricing.Budget) -> tuple[float, ...]:
    """The targets that training takes in turn, in the unit of the main cost; none if there is only one."""
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


def _check_sampling(config: ConfigDict, search: Search) -> None:
    """Checks that what is sampled within budgets can be."""
    settings = config.controller.reinforce
    warmup = round(settings.warmup_fraction * search.total_steps)
    if config.policy == "reinforce" and search.freeze_step <= warmup:
        raise ConfigError(
            f"controller.reinforce.freeze_fraction={settings.freeze_fraction}: expected a later part of training than "
            f"controller.reinforce.warmup_fraction={settings.warmup_fraction}, before which nothing is learnt"
        )
    if search.targets and not search.controller.within_budget:
        raise ConfigError(
            f"targets={config.targets}: the policy {config.policy!r} learns one target; expected one that samples "
            "within the budget, such as policy='fisher'"
        )
    try:
        costs = search.option_costs
        for of_target in () if costs is None else costs:
            assignment.best_within(np.where(search.plan.space.exists, 0.0, np.inf), of_target)
    except ValueError as error:
        raise ConfigError(f"policy={config.policy!r}: {error}") from error


def _given_genome(config: ConfigDict) -> Genome | None:
    """Genome from the genome file of the config, or None if the config names no file."""
    if config.policy == "fixed" and not config.genome:
        raise ConfigError("policy='fixed' needs --config.genome, a format name or a genome file")
    if config.policy != "fixed" and config.genome:
        raise ConfigError(f"genome={config.genome!r} is for --config.policy=fixed; the policy is {config.policy!r}")
    return read_genome(pathlib.Path(config.genome)) if names_genome_file(config.genome) else None


def _formats(config: ConfigDict, given: Genome | None) -> tuple[LayerFormat, ...]:
    """Formats that layers choose from: those of the config, or those of the given genome if the config names none."""
    if config.formats:
        return format_space(config.formats)
    if given is None or not given.layers:
        raise ConfigError("formats='': expected a format space, unless config.genome is a file that says each layer's")
    return format_space(sorted({choice.format for choice in given.layers.values()}))


def _check_architecture(
    config: ConfigDict, family: Family | None, plan: FormatPlan, given: Genome, genome: np.ndarray
) -> None:
    """Checks that a genome of a searched architecture is for the network of the config.

    Raises:
      GenomeFileError: the network has other settings than the file tells.
    """
    if "genome" in config.model:  # The model is built from a genome file, as those that APQ found.
        return
    settings = config.model.to_dict()
    if family:
        network = family.network(plan.architecture_of(genome))
        settings |= {name: getattr(network, name) for name in config.architecture}
    for name, value in given.architecture.items():
        if _plain(settings.get(name)) != _plain(value):
            raise GenomeFileError(
                f"it is of a network with {name}={value}, and model.{name} is {_plain(settings.get(name))} here"
            )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value


def _trials(config: ConfigDict, plan: FormatPlan, given: Genome | None, family: Family | None) -> tuple[Trial, ...]:
    """The trial that `config` describes, followed by its uniform baselines."""
    if given is not None:
        name = "/".join(pathlib.Path(config.genome).parts[-2:])
        try:
            genome = plan.encode(given)
            _check_architecture(config, family, plan, given, genome)
            requested = Trial(name, FIXED, "", config, genome)
        except GenomeFileError as error:
            raise ConfigError(f"genome={config.genome!r}: {error}") from error
    elif config.policy == "fixed":
        requested = _uniform_trial(config.genome, "", config, plan)
    elif config.policy == "uniform":
        requested = Trial(f"random search {_short(config.formats)}", RANDOM_SEARCH, "", config, None)
    else:
        method = "FLIQNAS" if config.architecture else "FLIQS"
        requested = Trial(f"{method} {_short(config.formats)}", SEARCHED, "", config, None)
    baselines = []
    for baseline in config.baselines:
        baseline_config = config.copy_and_resolve_references()
        baseline_config.policy, baseline_config.genome, baseline_config.baselines = "fixed", baseline, ()
        baselines.append(_uniform_trial(baseline, f"uniform-{baseline}", baseline_config, plan))
    return (requested, *baselines)


def _short(formats: str) -> str:
    """A format space as people are told it: of a long list, the first and the last."""
    names = formats.split(",")
    return formats if len(names) < 3 else f"{names[0].strip()}…{names[-1].strip()}"


def _uniform_trial(name: str, directory: str, config: ConfigDict, plan: FormatPlan) -> Trial:
    """Uniform baseline: the format `name` in all layers that no rule pins to another one."""
    parse_layer_format(name)
    return Trial(f"uniform {name}", UNIFORM, directory, config, plan.uniform_genome(name))
