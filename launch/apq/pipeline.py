"""An APQ experiment: its checked config, and the work directory that its steps read and write."""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from ml_collections import ConfigDict
from rich.console import Console

from apq_jax import architectures, family_space, within_budgets
from apq_jax.network_space import NetworkSpace
from aqt_like.formats import LayerFormat, format_space
from fliqs_jax import models
from fliqs_jax.models.call_finding import called
from hwcost import pricing
from hwcost.costs import find_cost
from hwcost.workload import Workload
from launch import data
from launch.apq import apq_settings
from launch.apq.search_ways import Way, find_ways, limits_of
from launch.data.example_checks import Labels, check_arrays
from launch.training import loop
from launch.training.budgets import BudgetSetting, parse_budget, read_alternatives
from launch.training.interruption import StopRequested
from launch.training.provenance import inputs_of
from launch.training.run_directory import CODE, Inputs, check_inputs, claim_directory, read_json, write_json
from launch.training.settings import ConfigError, check_steps

SUPERNET, PREDICTOR, SEARCH, SUMMARY = "supernet", "predictor", "search.json", "summary.json"
KIND = "apq"  # of the summary, which tells it from that of a FLIQS run
REPORTED_COSTS = ("bitfusion_latency", "bitfusion_energy", "bit_operations")  # as in APQ, Table 2
RECORD_FILES = {"float": "records-float.jsonl", "quantized": "records-quantized.jsonl"}


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """A checked config, and the objects made from it.

    Attributes:
      config: config of the APQ experiment.
      workdir: directory of all files of the experiment.
      console: console for progress and notes.
      source: the data.
      space: the search space.
      budgets: sets of limits by name of the cost, in its unit; each set is searched for.
      tables: cost tables by name of the cost, for all costs with budgets.
      ways: the joint search, and the baselines.
      stop: request to stop, see `stop_if_asked`.
    """

    config: ConfigDict
    workdir: pathlib.Path
    console: Console
    source: data.Source
    space: NetworkSpace
    budgets: tuple[dict[str, float], ...]
    tables: within_budgets.Tables
    ways: list[Way]
    stop: StopRequested = dataclasses.field(default_factory=StopRequested)

    def claim(self) -> None:
        """Claims the work directory for the config.

        Raises:
          ConfigError: the directory is that of another config, or of other data.
        """
        # These may change in a work directory: records are extended, and predictor and search can be repeated.
        steps = [f"{step}.{key}" for step in ("predictor", "search") for key in self.config[step]]
        inputs = inputs_of(self.config, self.source)
        claim_directory(
            self.workdir,
            self.config,
            {key: digest for key, digest in inputs.items() if not key.removeprefix(CODE).startswith("search.")},
            say=self.note,
            free=[*steps, *(f"records.{kind}" for kind in RECORD_FILES)],
        )

    def describe(self) -> None:
        """Prints what would be searched, within what, and what the largest network costs."""
        genomes = sum(math.log10(count) for count in self.space.search_space.option_counts)
        records = ", ".join(f"{self.config.records[kind]:,} {kind}" for kind in RECORD_FILES)
        largest = {name: pricing.price_exactly(table, self.space.largest) for name, table in self.tables.items()}
        self.note(f"data            {self.config.data.name}, {self.source.train_examples:,} examples")
        self.note(f"search space    {len(self.space.search_space)} decisions, 10^{genomes:.1f} genomes")
        self.note(f"once for all    {self.config.supernet.epochs:g} epochs, then {records} records")
        for number, budget in enumerate(self.budgets, start=1):
            limits = (f"{name} ≤ {limit:,.4g} (largest {largest[name]:,.4g})" for name, limit in budget.items())
            self.note(f"network {number:<8}{', '.join(limits)}")
        if len(self.ways) > 1:
            self.note(f"searched        {', '.join(way.name for way in self.ways)}")

    def open_data(self) -> data.Dataset:
        """Reads the data."""
        return self.source.open(valid_examples=self.config.data.valid_examples, seed=self.config.seed)

    def note(self, text: str) -> None:
        """Prints a line for the user."""
        self.console.print(text, soft_wrap=True)

    def read(self, name: str) -> dict[str, Any]:
        """The JSON document `name` of an earlier step.

        Raises:
          ConfigError: the step is not done yet.
        """
        if not (self.workdir / name).exists():
            raise ConfigError(f"{self.workdir / name} is not there yet: run the steps before this one")
        return read_json(self.workdir / name)

    def stop_if_asked(self) -> None:
        """Ends the program if a signal asked for it; steps call it where nothing is lost.

        Raises:
          loop.Stopped: a signal has arrived.
        """
        if self.stop:
            raise loop.Stopped(128 + (self.stop.signal_number or 0))

    def write(self, name: str, document: dict[str, Any]) -> None:
        """Writes a JSON document atomically."""
        path = self.workdir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, document)

    def has(self, name: str) -> bool:
        """Whether the file `name` is there."""
        return (self.workdir / name).exists()

    def done(self, name: str, inputs: Inputs | None = None, **asked: Any) -> bool:
        """Whether the document `name` exists and is what is `asked` for; prints a note if so.

        Raises:
          ConfigError: it is, but was made from other `inputs`, which nobody asked for; the message has the digests.
        """
        if not self.has(name):
            return False
        document = self.read(name)
        if any(document.get(key) != value for key, value in asked.items()):
            return False
        if inputs is not None:
            self.check_made_from(name, inputs)
        self.note(f"already complete: {self.workdir / name}")
        return True

    def check_made_from(self, name: str, inputs: Inputs) -> None:
        """Checks that the document `name` was made from these inputs, among others; says so if it does not tell.

        Raises:
          ConfigError: it was not; the message has the digests.
        """
        stored = self.read(name).get("inputs")
        if stored is None:
            self.note(
                f"{self.workdir / name} tells no digests of its inputs, as earlier versions: they may be others now"
            )
        else:
            known = {key: stored[key] for key in inputs if key in stored}
            check_inputs(self.workdir / name, known, inputs)


def prepare_pipeline(
    config: ConfigDict, workdir: pathlib.Path, console: Console, budgets: Sequence[str] = ()
) -> Pipeline:
    """Checks `config`, within seconds; `Pipeline.claim` is for whoever runs it.

    Args:
      config: a config as in configs/apq_common.py.
      workdir: directory of all files of the experiment.
      console: console for progress and notes.
      budgets: budgets as text (`launch.training.budgets`), instead of those of the config.

    Raises:
      ConfigError, ValueError: a setting is wrong; the message names it.
    """
    apq_settings.check_settings(config)
    source = data.find(config.data)
    space = _space(config, source)
    _check_examples(config, source)
    if isinstance(source, data.Arrays):
        check_arrays(source, Labels((), space.classes, padding=source.padding))
    sets = read_alternatives(tuple(map(parse_budget, budgets)) if budgets else config.search.budgets)
    limits = _limits(sets, space.base_layers)
    if repeated := [limit for number, limit in enumerate(limits) if limit in limits[:number]]:
        raise ConfigError(f"budgets: {repeated[0]} is there twice, in other words")
    tables = _tables(space, limits)
    ways = find_ways(space, tables, limits, config.search.baselines, functools.partial(console.print, soft_wrap=True))
    return Pipeline(config, workdir, console, source, space, limits, tables, ways)


def _space(config: ConfigDict, source: data.Source) -> NetworkSpace:
    """The space of a config: one of `architectures.SPACES`, or a family of `fliqs_jax.models` with formats.

    Raises:
      ConfigError, ValueError: it is for other data; or there is no such space, family or format.
    """
    shape = tuple(source.example.shape)
    if config.space:
        space = architectures.find(config.space, config.image_size)
        if shape != space.example_shape or source.classes != space.classes:
            raise ConfigError(
                f"space={config.space!r} is for images of {space.example_shape} in {space.classes} classes; "
                f"{config.data.name} has {shape} in {source.classes} (image_size is the space's, data.image_size the "
                "data's)"
            )
        return space
    name, settings = config.model.name, config.model.to_dict()
    try:
        network = models.create(classes=source.classes, **settings)
        family = models.family(name, network, config.architecture.to_dict())
    except ValueError as error:
        raise ConfigError(f"model and architecture: {error}") from error
    if not called(network).flags:
        raise ConfigError(f"model.name={name!r}: expected one with batch statistics, which APQ recalibrates")
    if models.drawn(network):
        raise ConfigError(
            f"model.dropout={settings['dropout']}: expected 0, since APQ trains its once-for-all network without"
        )
    of_family = family_space.of_family(
        family, format_space(config.formats), example_shape=shape, classes=source.classes, model=settings
    )
    for cost in REPORTED_COSTS:
        try:
            of_family.cost_table(find_cost(cost))
        except ValueError as error:
            raise ConfigError(f"formats={config.formats!r}: {cost} is reported: {error}") from error
    return of_family


def _check_examples(config: ConfigDict, source: data.Source) -> None:
    """Checks that there are examples for validation and for the batches of all steps."""
    valid, examples = config.data.valid_examples, source.train_examples
    if not 0 < valid < examples:
        raise ConfigError(f"data.valid_examples={valid}: expected 1…{examples - 1} of the training examples")
    for step in ("supernet", "records"):
        if (size := config[step].batch_size) > examples - valid:
            raise ConfigError(
                f"{step}.batch_size={size}: there are {examples - valid} such examples, with "
                f"data.valid_examples={valid} of {examples} set aside for validation"
            )
    epochs, batches = config.supernet.epochs, (examples - valid) // config.supernet.batch_size
    check_steps("supernet.epochs", epochs, epochs * batches)


def _limits(sets: Sequence[Sequence[BudgetSetting]], base: Workload) -> tuple[dict[str, float], ...]:
    """Limits of each set by cost, in its unit; a format as unit stands for all layers of `base` in that format."""

    def uniform_cost(name: str) -> Callable[[LayerFormat], float]:
        return lambda fmt: find_cost(name).uniform(base, fmt)

    return tuple({setting.cost: setting.amount(uniform_cost(setting.cost)) for setting in budget} for budget in sets)


def _tables(space: NetworkSpace, budgets: Sequence[dict[str, float]]) -> within_budgets.Tables:
    """The cost tables of all costs with budgets, by name; empty without budgets.

    Raises:
      within_budgets.BudgetError: no network found meets a set.
    """
    names = list(dict.fromkeys(name for budget in budgets for name in budget))
    tables = {name: space.cost_table(find_cost(name)) for name in names}
    for name, table in tables.items():
        pricing.check_total(name, *pricing.reachable_interval(table, space.search_space))
    for limits in limits_of(budgets, names):
        within_budgets.cheapest(space, tables, limits)
    return tables
