"""An APQ experiment: its checked config, and the work directory that its steps read and write."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from rich.console import Console

from apq_jax import architectures, evolution, shrinking
from apq_jax.architectures import ArchitectureSpace
from apq_jax.selection import SELECTIONS
from aqt_like.formats import LayerFormat
from hwcost import pricing
from hwcost.costs import find_cost
from hwcost.workload import Workload
from launch import data
from launch.training.budgets import BudgetSetting, parse_budget, read_alternatives
from launch.training.experiment import ConfigError
from launch.training.run_directory import claim_directory, write_json

SUPERNET, PREDICTOR, SEARCH, SUMMARY = "supernet", "predictor", "search.json", "summary.json"
KIND = "apq"  # of the summary, which tells it from that of a FLIQS run
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
    """

    config: ConfigDict
    workdir: pathlib.Path
    console: Console
    source: data.Source
    space: ArchitectureSpace
    budgets: tuple[dict[str, float], ...]
    tables: evolution.Tables

    def claim(self) -> None:
        """Claims the work directory for the config.

        Raises:
          ConfigError: the directory is that of another config.
        """
        # These may change in a work directory: records are extended, and predictor and search can be repeated.
        steps = [f"{step}.{key}" for step in ("predictor", "search") for key in self.config[step]]
        claim_directory(self.workdir, self.config, free=[*steps, *(f"records.{kind}" for kind in RECORD_FILES)])

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
        try:
            return json.loads((self.workdir / name).read_text())
        except OSError as error:
            raise ConfigError(f"{self.workdir / name} is not there yet: run the steps before this one") from error

    def write(self, name: str, document: dict[str, Any]) -> None:
        """Writes a JSON document atomically."""
        path = self.workdir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, document)

    def done(self, name: str, **made_from: Any) -> bool:
        """Whether the document `name` exists and was made from equal inputs, `made_from`; prints a note if so."""
        path = self.workdir / name
        if not path.exists():
            return False
        document = self.read(name)
        if any(document.get(key) != value for key, value in made_from.items()):
            return False
        self.note(f"already complete: {path}")
        return True


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
    space = architectures.find(config.space, config.image_size)
    source = data.find(config.data)
    expected = (space.image, space.image, space.image_channels)
    if tuple(source.example.shape) != expected or source.classes != space.classes:
        raise ConfigError(
            f"space={config.space!r} is for images of {expected} in {space.classes} classes; {config.data.name} has "
            f"{tuple(source.example.shape)} in {source.classes} (image_size is the space's, data.image_size the data's)"
        )
    if config.supernet.sampling not in shrinking.SAMPLINGS:
        known = ", ".join(shrinking.SAMPLINGS)
        raise ConfigError(f"supernet.sampling={config.supernet.sampling!r}: expected one of {known}")
    if config.search.selection not in SELECTIONS:
        raise ConfigError(f"search.selection={config.search.selection!r}: expected one of {', '.join(SELECTIONS)}")
    if not 0 < config.predictor.held_out < config.records.quantized:
        raise ConfigError(
            f"predictor.held_out={config.predictor.held_out}: expected some of the {config.records.quantized} records"
        )
    sets = read_alternatives(tuple(map(parse_budget, budgets)) if budgets else config.search.budgets)
    limits = _limits(sets, space.layers)
    return Pipeline(config, workdir, console, source, space, limits, _tables(space, limits))


def _limits(sets: Sequence[Sequence[BudgetSetting]], largest: Workload) -> tuple[dict[str, float], ...]:
    """Limits of each set by cost, in its unit; a format as unit stands for the largest network in that format."""

    def uniform_cost(name: str) -> Callable[[LayerFormat], float]:
        return lambda fmt: find_cost(name).uniform(largest, fmt)

    return tuple({setting.cost: setting.amount(uniform_cost(setting.cost)) for setting in budget} for budget in sets)


def _tables(space: ArchitectureSpace, budgets: Sequence[dict[str, float]]) -> evolution.Tables:
    """The cost tables of all costs with budgets, by name; empty without budgets.

    Raises:
      ConfigError: the sets have different costs.
      evolution.BudgetError: no network found meets a set.
    """
    if not budgets:
        return {}
    names = tuple(budgets[0])
    if any(tuple(budget) != names for budget in budgets):
        raise ConfigError(f"budgets {list(budgets)}: expected the same costs in every set")
    tables = {name: space.cost_table(find_cost(name)) for name in names}
    for budget in budgets:
        evolution.cheapest(space, tables, np.asarray(list(budget.values())))
    return tables
