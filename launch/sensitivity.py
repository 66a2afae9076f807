"""Post-training quantisation of a run: sensitivity of each layer, and assigned formats, without training.

    python -m launch.sensitivity DIR [--score=noise] [--target=1.15] [--examples=1024]
    python -m launch.sensitivity DIR --score=fisher --target=1.2,1.6,2.4    (several targets from one set of scores)
    python -m launch.sensitivity DIR --score=fisher --max_drop=0.5          (the cheapest that loses half a point)

DIR is the directory of a finished run, preferably in a wide format (DIR/uniform-bf16). Each layer is quantised to each
format while the others stay in float, on validation examples: signal-to-noise ratio of the logits, and drop of the
quality. With `--score=fisher` there are Fisher scores of weights and inputs as well, from one backward pass per batch.
From the score, formats are assigned under each cost target, greedily and by knapsack. The command reports the test
accuracy of these genomes after post-training quantisation with recalibrated batch statistics.

`--max_drop=P` goes along the genomes that no cheaper one matches in score and measures networks of them, by bisection,
on the whole validation split. It takes the cheapest one measured whose quality is at most P points below that of the
float network.

It writes sensitivity.json, sensitivity.svg and genome files to DIR: genome-knapsack.json, with several targets
genome-knapsack-1.6.json and so on, and genome-max-drop.json. `--config.policy=fixed --config.genome=FILE` trains such a
genome.
"""

import argparse
import itertools
import math
import pathlib
import shlex
import sys
from collections.abc import Iterator, Sequence
from typing import Any

if not __package__:  # run as a file: import from the folder of launch/ and from the current one
    sys.path[:1] = [str(pathlib.Path(__file__).parents[1]), ""]

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from fliqs_jax import assignment, layer_sensitivity
from fliqs_jax.search import SearchState
from hwcost import pricing
from hwcost.genome_file import write_genome
from launch import data, ending
from launch.data.contract import on_device
from launch.reports import figures
from launch.training import finished, trial_run
from launch.training.budgets import ABSOLUTE
from launch.training.experiment import Experiment
from launch.training.run_directory import write_json
from launch.training.settings import ConfigError
from launch.training.teaching import read_teacher

METHODS = {"greedy": assignment.greedy, "knapsack": assignment.knapsack}
NOISE, FISHER = SCORES = ("noise", "fisher")
MEASURES = {NOISE: "signal-to-noise ratio of the logits", FISHER: "Fisher score below the largest"}
_MOST_DECIBELS = 200.0  # JSON has no infinity: how a ratio without noise is stored


def read_targets(texts: Sequence[str], own: float) -> list[float]:
    """The numbers of `--target` options, joined by commas or not; the run's own target without any.

    Raises:
      ConfigError: one is not a number above 0, or is there twice.
    """
    if not texts:
        return [own]
    targets = []
    for text in ",".join(texts).split(","):
        try:
            targets.append(float(text))
        except ValueError as error:
            raise ConfigError(f"--target={text}: expected numbers above 0, as in 1.2,1.6,2.4") from error
        if not 0 < targets[-1] < math.inf:
            raise ConfigError(f"--target={text}: expected numbers above 0, as in 1.2,1.6,2.4")
        if f"{targets[-1]:g}" in [f"{target:g}" for target in targets[:-1]]:
            raise ConfigError(f"--target={text} is there twice")
    return targets


class RunCosts:
    """The main cost of a run, of its genomes and in its own unit."""

    def __init__(self, prepared: Experiment) -> None:
        """Raises ValueError if the cost is no sum over layers: see `assignment.option_costs`."""
        self.table = prepared.search.budgets[0].table
        self._unit = prepared.search.budgets[0].target / prepared.config.target
        self._unit_name = "" if prepared.config.target_unit == ABSOLUTE else f" × {prepared.config.target_unit}"
        self._lowest = float(assignment.option_costs(prepared.plan.space, self.table).min(axis=1).sum())

    def budget(self, target: float) -> float:
        """The cost of a target in the run's own unit.

        Raises:
          ConfigError: no genome is as cheap.
        """
        budget = target * self._unit
        if budget < self._lowest:
            raise ConfigError(
                f"--target={target:g}: the budget {self.told(budget)} is below the cheapest genome, which costs "
                f"{self.told(self._lowest)}"
            )
        return budget

    def told(self, cost: float) -> str:
        """A cost in the run's own unit, as in `1.6 × int2`."""
        return f"{cost / self._unit:.4g}{self._unit_name}"


class Assigner:
    """Assigns formats by the scores of layers, and measures the networks without training them."""

    def __init__(self, prepared: Experiment, costs: RunCosts, state: SearchState, dataset: data.Dataset) -> None:
        self._search, self._plan, self._state = prepared.search, prepared.plan, state
        self._costs = costs
        self._networks = finished.Networks(prepared, dataset)
        self._qualities: dict[tuple[bytes, str], float] = {}

    def within(self, budget: float, layer_losses: np.ndarray) -> dict[str, dict[str, Any]]:
        """Genome, cost, and test quality without training of each method of `METHODS`.

        Args:
          budget: cost, in its unit.
          layer_losses: float64[L, K], scores.
        """
        choices = assignment.options(self._plan, self._costs.table, layer_losses)
        assignments = {}
        for name, method in METHODS.items():
            genome = method(choices, budget)
            cost = pricing.price_exactly(self._costs.table, genome)
            assignments[name] = {
                "genome": genome.tolist(),
                "cost": cost,
                "relative_cost": cost / budget,
                f"test_{self._search.quality.name}_without_training": self._quality(genome, "test"),
                "layers": self._plan.layer_formats(genome),
            }
        return assignments

    def within_drop(self, points: float, layer_losses: np.ndarray) -> dict[str, Any]:
        """The cheapest genome measured whose validation quality is at most `points` / 100 below the float network's.

        Args:
          points: largest drop, in hundredths of the quality.
          layer_losses: float64[L, K], scores; genomes are those that no cheaper one matches in their sum.

        Raises:
          ConfigError: even the dearest of these genomes drops more.
        """
        name = self._search.quality.name
        in_float = self._networks.in_float(self._state)
        valid, test = (self._networks.quality(in_float, split) for split in ("valid", "test"))
        genomes = assignment.front(assignment.options(self._plan, self._costs.table, layer_losses))
        costs = np.asarray([pricing.price_exactly(self._costs.table, genome) for genome in genomes])
        measured: dict[int, float] = {}

        def drop(index: int) -> float:
            """In points; qualities have six decimals."""
            return round(100 * (valid - measured[index]), 4)

        def holds(index: int) -> bool:
            measured[index] = self._quality(genomes[index], "valid")
            return drop(index) <= points

        found = assignment.cheapest_that_holds(costs, holds)
        if found is None:
            raise ConfigError(
                f"--max_drop={points:g}: even the dearest genome, which costs {self._costs.told(costs[-1])}, drops by "
                f"{drop(len(costs) - 1):.4g} points of {name} on validation, from {valid:.2%}"
            )
        return {
            "points": points,
            f"float_validation_{name}": valid,
            f"float_test_{name}": test,
            "genome": genomes[found].tolist(),
            "cost": costs[found],
            "cost_in_unit": self._costs.told(costs[found]),
            f"validation_{name}": measured[found],
            "drop": drop(found),
            f"test_{name}_without_training": self._quality(genomes[found], "test"),
            "layers": self._plan.layer_formats(genomes[found]),
            "measured": [{"cost": costs[i], f"validation_{name}": measured[i]} for i in sorted(measured)],
        }

    def _quality(self, genome: np.ndarray, split: str) -> float:
        """Quality of the frozen network with recalibrated batch statistics; the methods often agree on a genome."""
        key = genome.tobytes(), split
        if key not in self._qualities:
            network = self._networks.recalibrated(self._networks.frozen(self._state, jnp.asarray(genome)))
            self._qualities[key] = self._networks.quality(self._networks.variables(network), split)
        return self._qualities[key]


def fisher_scores(
    prepared: Experiment, state: SearchState, dataset: data.Dataset, *, batches: int, console: Console
) -> np.ndarray:
    """Fisher scores on whole batches of validation examples, with the logits of the run's teacher if it has one.

    Returns:
      float64[L, K].

    Raises:
      ValueError: see `teaching.read_teacher` and `layer_sensitivity.fisher_over`.
    """
    config = prepared.config
    stream = dataset.train_batches("valid", batch_size=config.valid_batch_size, first_step=0, augmented=False)
    teach = read_teacher(prepared, dataset, console)
    taught = (on_device(dataset)(teach(jax.tree.map(jnp.asarray, batch))) for batch in stream)
    most = config.data.valid_examples // config.valid_batch_size
    return layer_sensitivity.fisher_over(prepared.search, state, itertools.islice(taught, min(batches, most)))


def decibels_of(document: dict[str, Any]) -> np.ndarray:
    """The score that formats were assigned by, in decibels, float64[L, K], low where a layer is sensitive, 200 at most.

    Fisher scores are in decibels below the largest.
    """
    if document["score"] == NOISE:
        return np.asarray(list(document["signal_to_noise_db"].values()))
    scores = np.asarray(list(document["fisher_score"].values()))
    relative = scores / scores.max() if scores.any() else scores
    return 0.0 - 10 * np.log10(np.maximum(relative, 10 ** (-_MOST_DECIBELS / 10)))


def show(document: dict[str, Any], decibels: np.ndarray, console: Console) -> None:
    """Prints the scores of layers, in decibels, float64[L, K], and the genomes of the document that `main` stores."""
    name, score = document["quality"], document["score"]
    genomes = dict(_assignments(document))
    if "max_drop" in document:
        genomes["max drop"] = document["max_drop"]
    formats = [f"{fmt} (dB)" for fmt in document["formats"]]
    table = Table("layer", *formats, *genomes, box=None, title=MEASURES[score], title_justify="left")
    for path, values in zip(document["signal_to_noise_db"], decibels, strict=True):
        table.add_row(path, *(f"{value:.1f}" for value in values), *(g["layers"][path] for g in genomes.values()))
    console.print(table)
    for method, result in _assignments(document):
        console.print(
            f"{method}: {result[f'test_{name}_without_training']:.2%} {name} on test without training, "
            f"cost / target {result['relative_cost']:.3f}"
        )
    if "max_drop" in document:
        result = document["max_drop"]
        console.print(
            f"max drop {result['points']:g}: {result['drop']:.4g} points of {name} lost on validation, from "
            f"{result[f'float_validation_{name}']:.2%} in float to {result[f'validation_{name}']:.2%}, and "
            f"{result[f'test_{name}_without_training']:.2%} on test (float {result[f'float_test_{name}']:.2%}), at "
            f"cost {result['cost_in_unit']}: the cheapest of {len(result['measured'])} networks measured that holds"
        )


def _assignments(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The assignments of all targets; names have the target if there are several, as in `knapsack-1.6`."""
    yield from document.get("assignments", {}).items()
    for target, of_target in document.get("targets", {}).items():
        yield from ((f"{method}-{target}", result) for method, result in of_target["assignments"].items())


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    """Raises ConfigError for a number out of its range."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=pathlib.Path, metavar="DIR")
    parser.add_argument("--score", choices=SCORES, default=NOISE, help="what formats are assigned by")
    parser.add_argument(
        "--target",
        action="append",
        default=[],
        help="cost target in the run's own unit, if not the run's own; several are joined by commas",
    )
    parser.add_argument("--max_drop", type=float, help="points of quality on validation that a genome may lose")
    parser.add_argument("--examples", type=int, default=1024, help="validation examples to measure on")
    arguments = parser.parse_args(argv)
    if arguments.max_drop is not None and not 0 <= arguments.max_drop <= 100:
        raise ConfigError(f"--max_drop={arguments.max_drop:g}: expected points of quality, 0…100")
    if arguments.examples < 1:
        raise ConfigError(f"--examples={arguments.examples}: expected a whole number above 0")
    return arguments


def measure(arguments: argparse.Namespace, console: Console) -> tuple[Experiment, dict[str, Any]]:
    """The experiment of the run, and what is to be stored: scores of its layers, and genomes by them.

    Raises:
      ValueError: the run cannot be read, an option cannot be used, or no genome holds.
    """
    prepared = finished.read_experiment(arguments.directory)
    if others := list(prepared.costs)[1:]:
        console.print(f"not heeded: the run's further budgets, of {', '.join(others)}", soft_wrap=True)
    targets = read_targets(arguments.target, prepared.config.target)
    costs = RunCosts(prepared)
    budgets = [costs.budget(target) for target in targets]
    state = finished.read_weights(arguments.directory, prepared)
    dataset = trial_run.open_data(prepared)
    assigner = Assigner(prepared, costs, state, dataset)
    size = prepared.config.valid_batch_size
    count = max(arguments.examples // size, 1)
    scores = {}
    if arguments.score == FISHER:
        scores[FISHER] = fisher_scores(prepared, state, dataset, batches=count, console=console)
    batches = map(on_device(dataset), itertools.islice(dataset.eval_batches("valid", batch_size=size), count))
    measured = layer_sensitivity.measure_over(prepared.search, state, batches)
    scores[NOISE] = measured.noise_to_signal
    losses, name = scores[arguments.score], prepared.search.quality.name

    def by_path(values: np.ndarray) -> dict[str, list[float]]:
        return dict(zip(prepared.search.paths, values.tolist(), strict=True))

    document: dict[str, Any] = {
        "formats": [fmt.name for fmt in prepared.plan.formats],
        "quality": name,
        "score": arguments.score,
        f"validation_{name}": measured.quality,
        "signal_to_noise_db": by_path(np.minimum(measured.signal_to_noise_db, _MOST_DECIBELS).round(3)),
        f"{name}_drop": by_path(measured.quality_drop),
    }
    if FISHER in scores:
        document["fisher_score"] = by_path(scores[FISHER])
    if arguments.max_drop is not None:
        document["max_drop"] = assigner.within_drop(arguments.max_drop, losses)
    assigned = [{"target": budget, "assignments": assigner.within(budget, losses)} for budget in budgets]
    if len(targets) == 1:
        return prepared, document | assigned[0]
    return prepared, document | {"targets": {f"{t:g}": one for t, one in zip(targets, assigned, strict=True)}}


def main(argv: list[str] | None = None) -> None:
    """Measures sensitivities, assigns formats, prints and stores both."""
    console = Console(markup=False)
    console = console if console.is_terminal else Console(width=160, markup=False)
    with ending.in_one_line():
        arguments = _arguments(argv)
        prepared, document = measure(arguments, console)
        command = shlex.join(["python", "-m", "launch.sensitivity", *(sys.argv[1:] if argv is None else argv)])
        document = dict[str, Any](command=command) | document
        decibels = decibels_of(document)
        genomes = {f"genome-{method}.json": result["genome"] for method, result in _assignments(document)}
        if "max_drop" in document:
            genomes["genome-max-drop.json"] = document["max_drop"]["genome"]
        measured = MEASURES[document["score"]]
        picture = figures.sensitivities(decibels, prepared.search.paths, document["formats"], measured)
        directory = arguments.directory
        write_json(directory / "sensitivity.json", document)
        (directory / "sensitivity.svg").write_text(picture)
        for file, genome in genomes.items():
            write_genome(directory / file, prepared.plan.named(genome))
        show(document, decibels, console)
        console.print(f"wrote {directory}/sensitivity.json, sensitivity.svg, {', '.join(genomes)}")


if __name__ == "__main__":
    main()
