"""Experiments: checks all settings of a config, before data is read or anything is compiled, and builds the search."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from aqt_like import calibration, format_choice, gradients, path_rules
from aqt_like.calibration import CRITERIA, Criterion
from aqt_like.formats import LayerFormat, format_space, parse_layer_format
from aqt_like.granularity import SCALE_RULES, float32_scale
from aqt_like.interception import Quantizer, kernel_clip, weight_clips
from fliqs_jax import models
from fliqs_jax.models import elastic, pretrained
from fliqs_jax.models.call_finding import called, find_adapter
from fliqs_jax.models.calling import PARAMS, CalledModel
from fliqs_jax.models.elastic import Family, Params, Weights
from fliqs_jax.models.pinning import pinned
from fliqs_jax.models.rematerialisation import check_expression
from fliqs_jax.search import Search
from fliqs_jax.weight_averaging import averaged
from hwcost import workload
from hwcost.cost_model import CostModel
from hwcost.format_plan import USUAL_GRANULARITY, FormatPlan, format_plan
from hwcost.genome_file import Genome, GenomeFileError, decides_format
from hwcost.workload import Survey
from launch import data
from launch.config_files import load_config
from launch.model_arguments import several
from launch.training import given_genome, optimizers
from launch.training.compute import Arithmetic, check_activations, choose_arithmetic
from launch.training.controllers import make_controller
from launch.training.learning_task import Task, make_task
from launch.training.search_limits import check_sampling, search_budgets, search_targets
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

    def remarks(self) -> list[str]:
        """How the model is called and what looks like a mistake in that, what is in no layer, what has no effect."""
        unused = optimizers.unused_settings(self.config.optimizer)
        told = [f"{self.config.optimizer.name} takes no {' and no '.join(unused)}"] if unused else []
        outside = self.survey.remark()
        return [*self.search.model.remarks(), *([outside] if outside else []), *told]


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
    config = _own_model(config)
    given = given_genome.read(config)
    config = given_genome.with_network_of(config, given)
    formats = _formats(config, given)
    source = source or data.find(config.data)
    _check_examples(config, source)
    settings = config.model.to_dict()
    network = models.find(settings["name"])
    model = models.create(settings.pop("name"), classes=source.classes, **settings)
    buckets = getattr(model, "buckets", None)
    if buckets is not None and buckets < config.data.get("buckets", 0):
        raise ConfigError(f"model.buckets={buckets}: expected at least data.buckets={config.data.buckets}")
    call = _call(config, model, source)
    task = _task(config, call, source)
    whole = family or _family(config, model)
    family, of_layers = _under_rules(whole, config.rules)
    _check_pretrained(config, call, source)
    base, call = call, dataclasses.replace(call, module=family.largest) if family else call
    found = _survey(config, call, network.uncounted, source.example)
    architecture = elastic.architecture(family, found.layers) if family else given_genome.architecture_of(given)
    if family is not whole:
        relative_to = _survey(config, base, network.uncounted, source.example).layers
        architecture = architecture._replace(relative_to=relative_to)
    plan = format_plan(found.layers, formats, of_layers, architecture)
    costs, budgets = search_budgets(config, plan)
    arithmetic = choose_arithmetic(config, plan)
    steps_per_epoch = (source.train_examples - config.data.valid_examples) // config.batch_size
    total_steps = check_steps("epochs", config.epochs, config.epochs * steps_per_epoch)
    search = Search(
        model=call,
        plan=plan,
        bank=format_choice.format_bank(formats, use_unsigned=config.unsigned_inputs),
        budgets=budgets,
        optimizer=_optimizer(config, total_steps, call, source),
        loss=task.loss,
        quality=task.quality,
        targets=search_targets(config, plan, budgets[0]),
        controller=make_controller(config, plan, budgets, total_steps),
        total_steps=total_steps,
        # Inputs are profiled for at least one step before they are quantised.
        input_quantization_step=max(round(config.input_quantization_fraction * total_steps), 1),
        profile_steps=max(round(config.profile_fraction * total_steps), 1),
        quantizer=_quantizer(config, plan, arithmetic, elastic=family is not None),
        family=family,
        joint_steps=round(config.controller.reinforce.warmup_fraction * total_steps),
        rematerialise=config.rematerialise,
    )
    check_sampling(config, search)
    try:
        check_activations(call, search.quantizer, several(source.example))
        check_expression(search.rematerialise, call, several(source.example))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    multiples = format_choice.precomputed_clip_multiples(
        formats, len(plan.workload), config.clip.distribution, use_unsigned=config.unsigned_inputs
    )
    if config.clip.input_multiple:
        multiples = multiples.with_inputs(config.clip.input_multiple)
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


def _own_model(config: ConfigDict) -> ConfigDict:
    """The config without the settings that shipped configs have for our networks, if the network is the user's."""
    settings = config.model.to_dict()
    name = settings.pop("name")
    if "classes" in settings:
        raise ConfigError(f"model.classes={settings['classes']}: expected no such setting, the data have the classes")
    taken = models.taken_settings(name, settings, set(load_config("common").model))
    if taken == settings:
        return config
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.model = {"name": name, **taken}
    return config


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


def _call(config: ConfigDict, model: nn.Module, source: data.Source) -> CalledModel:
    """The model of a config with how it is called."""
    adapter = find_adapter(config.apply)
    try:
        ours = config.model.name in models.MODELS and not (config.output or adapter)
        draws = models.drawn(model) if ours else None
        return called(model, several(source.example), output=config.output, adapter=adapter, draws=draws)
    except ValueError as error:
        raise ConfigError(f"model={config.model.name!r}: {error}") from error


def _optimizer(
    config: ConfigDict, total_steps: int, model: CalledModel, source: data.Source
) -> optax.GradientTransformation:
    own = () if config.optimizer.name in optimizers.OPTIMIZERS else (_variables(model, source)[PARAMS],)
    try:
        optimizer = optimizers.weight_optimizer(config.optimizer, total_steps, *own)
    except (TypeError, ValueError) as error:
        raise ConfigError(str(error)) from error
    return averaged(optimizer, config.ema) if config.ema else optimizer


def _task(config: ConfigDict, model: CalledModel, source: data.Source) -> Task:
    """The loss and the quality of a config, checked with the model and the data."""
    try:
        return make_task(config, model, source)
    except data.DataError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _survey(config: ConfigDict, model: CalledModel, uncounted: Sequence[str], example: Any) -> Survey:
    """Layers whose formats can be searched, and what is outside of them."""
    found = workload.survey(model, example, ignored=uncounted, products=config.products)
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


def _under_rules(family: Family | None, rules: Sequence[str]) -> tuple[Family | None, list[str]]:
    """The networks of a family that the rules on its decisions leave, and the other rules, which are on layers."""
    of_sizes = [text for text in rules if path_rules.is_on_architecture(text)]
    decisions = {decision.name: decision.options for decision in family.space.decisions} if family else {}
    allowed = path_rules.allowed_options(decisions, of_sizes)
    left = [text for text in rules if text not in of_sizes]
    return pinned(family, allowed) if family and allowed else family, left


def _quantizer(config: ConfigDict, plan: FormatPlan, arithmetic: Arithmetic, *, elastic: bool) -> Quantizer:
    statistic = calibration.root_mean_square_of_present if elastic else calibration.root_mean_square
    scale_rule = SCALE_RULES[config.scales]
    if config.products and scale_rule is not float32_scale:
        raise ConfigError(f"scales={config.scales!r}: products=True: expected False, since theirs depend on the input")
    clips = weight_clips(plan.granularity_of, statistic, scale_rule)
    estimator = gradients.ewgs(config.ewgs_strength) if config.ewgs_strength else gradients.straight_through
    return Quantizer(
        estimator,
        weight_clip=kernel_clip(USUAL_GRANULARITY, statistic, scale_rule),
        input_scale_rule=scale_rule,
        weight_clip_of=clips,
        operands=jnp.dtype(arithmetic.operands),
        precision=arithmetic.precision,
        activations=jnp.dtype(arithmetic.activations),
    )


def _variables(model: CalledModel, source: data.Source) -> dict[str, Any]:
    """Shapes and types of the variables of a model."""
    return jax.eval_shape(lambda x: model.init(jax.random.key(0), x), several(source.example))


def _check_pretrained(config: ConfigDict, model: CalledModel, source: data.Source) -> None:
    if config.init_from:
        pretrained.load(
            pathlib.Path(config.init_from),
            config.model.name,
            _variables(model, source),
            prefix=config.init_prefix,
            anew=config.init_anew,
        )
    elif config.init_prefix or config.init_anew:
        raise ConfigError(
            f"init_prefix={config.init_prefix!r}, init_anew={config.init_anew!r}: there is no init_from to read"
        )


def _formats(config: ConfigDict, given: Genome | None) -> tuple[LayerFormat, ...]:
    """Formats that layers choose from: those of the config, or those of the given genome if the config names none."""
    if config.formats:
        return format_space(config.formats)
    if given is None or not given.layers:
        raise ConfigError("formats='': expected a format space, unless config.genome is a file that says each layer's")
    return format_space(given_genome.formats_in(given))


def _trials(config: ConfigDict, plan: FormatPlan, given: Genome | None, family: Family | None) -> tuple[Trial, ...]:
    """The trial that `config` describes, followed by its uniform baselines."""
    if given is not None:
        name = "/".join(pathlib.Path(config.genome).parts[-2:])
        try:
            genome = plan.encode(given)
            given_genome.check_network(config, family, plan, given, genome)
            requested = Trial(name, FIXED, "", config, genome)
        except GenomeFileError as error:
            raise ConfigError(f"genome={config.genome!r}: {error}") from error
    elif config.policy == "fixed":
        requested = _uniform_trial(config.genome, "", config, plan)
    elif config.policy == "uniform":
        requested = Trial(f"random search {_short(config.formats)}", RANDOM_SEARCH, "", config, None)
    else:
        requested = Trial(_search_name(config, plan), SEARCHED, "", config, None)
    baselines = []
    for baseline in config.baselines:
        baseline_config = config.copy_and_resolve_references()
        baseline_config.policy, baseline_config.genome, baseline_config.baselines = "fixed", baseline, ()
        baselines.append(_uniform_trial(baseline, f"uniform-{baseline}", baseline_config, plan))
    return (requested, *baselines)


def _search_name(config: ConfigDict, plan: FormatPlan) -> str:
    """What a search is called: FLIQS over formats, NAS over an architecture at given formats, FLIQNAS over both."""
    if not config.architecture:
        return f"FLIQS {_short(config.formats)}"
    options = [decision.options for decision in plan.space.decisions if decides_format(decision.name)]
    if any(len(each) > 1 for each in options):
        return f"FLIQNAS {_short(config.formats)}"
    return f"NAS {_short(','.join(dict.fromkeys(each[0] for each in options)))}"


def _short(formats: str) -> str:
    """A format space as people are told it: of a long list, the first and the last."""
    names = formats.split(",")
    return formats if len(names) < 3 else f"{names[0].strip()}…{names[-1].strip()}"


def _uniform_trial(name: str, directory: str, config: ConfigDict, plan: FormatPlan) -> Trial:
    """Uniform baseline: the format `name` in all layers that no rule pins to another one."""
    parse_layer_format(name)
    return Trial(f"uniform {name}", UNIFORM, directory, config, plan.uniform_genome(name))
