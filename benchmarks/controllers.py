"""Controllers against each other, against genomes that nothing was learnt for, and against uniform networks.

    python -m benchmarks.controllers --data_dir=DIR [--seeds=3] [--workdir=runs/controllers] [--only=resnet8_low]

Networks of one case are trained equally long. `rule` spends the budget as if all layers were alike and each bit halved
the loss; `random` draws genomes that cost what the target allows; `greedy` and `knapsack` assign formats by the
sensitivities of a trained int8 network, which is one training more. Finished networks in the work directory are not
trained again. Four hours on two cores; writes results/controllers.json.
"""

import functools
import itertools
import json
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from benchmarks import trained_networks
from configs import fliqs_cifar10_deit, fliqs_cifar10_mobilenetv2, fliqs_cifar10_resnet8, fliqs_digits
from fliqs_jax import assignment, fisher, layer_sensitivity
from fliqs_jax.best_genome import best_within_budgets
from hwcost import pricing
from hwcost.genome_file import write_genome
from launch.training import finished, progress, trial_run
from launch.training.experiment import Experiment, prepare_experiment
from launch.training.interruption import StopRequested
from launch.training.run_directory import METRICS, SUMMARY

RESULTS = pathlib.Path(__file__).parent / "results" / "controllers.json"
TRAINED_BEFORE = "int8"  # whose sensitivities greedy and knapsack use
SENSITIVITY_EXAMPLES = 1024


class Case(NamedTuple):
    """A network, a format space, and what is compared on it.

    Attributes:
      title: what it is, in tables.
      config: makes the config.
      changes: its settings, changed.
      targets: cost targets.
      uniform: formats of uniform networks.
      policies: names in `POLICIES`.
      genomes: names in `GENOMES`.
      together: targets that one training takes in turn, for each policy in `TOGETHER`.
    """

    title: str
    config: Callable[[], ConfigDict]
    changes: dict[str, Any]
    targets: tuple[float, ...]
    uniform: tuple[str, ...]
    policies: tuple[str, ...]
    genomes: tuple[str, ...] = ()
    together: tuple[float, ...] = ()


def _fisher(freeze: float) -> dict[str, Any]:
    return {"policy": "fisher", "controller.fisher.freeze_fraction": freeze}


POLICIES: dict[str, dict[str, Any]] = {
    "reinforce": {"policy": "reinforce"},
    "reinforce, frozen at 0.5": {"policy": "reinforce", "controller.reinforce.freeze_fraction": 0.5},
    "reinforce, paired": {"policy": "reinforce", "controller.reinforce.paired": True},
    "fisher, frozen at 0.1": _fisher(0.1),
    "fisher, frozen at 0.25": _fisher(0.25),
    "fisher, frozen at 0.5": _fisher(0.5),
}
CHOSEN = "fisher, frozen at 0.25"
LOW_BITS = {"formats": "int2,int3,int4,int6,int8", "target_unit": "int2"}
CASES = {
    "resnet8_low": Case(
        "ResNet-8, few bits",
        fliqs_cifar10_resnet8.get_config,
        LOW_BITS | {"epochs": 6.0},
        targets=(1.6, 2.25),
        uniform=("int2", "int3", TRAINED_BEFORE),
        policies=tuple(POLICIES),
        genomes=("rule", "random 0", "random 1", "greedy", "knapsack"),
        together=(1.2, 1.6, 2.25),
    ),
    # Most weights, and much of what is sensitive, are in the last two convolutions.
    "resnet8_bytes": Case(
        "ResNet-8, few bits, bytes of weights",
        fliqs_cifar10_resnet8.get_config,
        LOW_BITS | {"epochs": 6.0, "cost": "weight_bytes"},
        targets=(1.6,),
        uniform=("int2", "int3"),
        policies=("reinforce", CHOSEN, "fisher, frozen at 0.5"),
        genomes=("rule", "random 0"),
    ),
    "deit_low": Case(
        "DeiT, few bits",
        fliqs_cifar10_deit.get_config,
        LOW_BITS,
        targets=(1.6,),
        uniform=("int2", "int3"),
        policies=("reinforce", CHOSEN),
        genomes=("rule", "random 0"),
    ),
    "mobilenetv2_low": Case(
        "MobileNetV2, few bits",
        fliqs_cifar10_mobilenetv2.get_config,
        {"formats": "int3,int4,int6,int8", "target_unit": "int3", "target": 1.3},
        targets=(1.3,),
        uniform=("int3",),
        policies=("reinforce", CHOSEN),
        genomes=("rule",),
    ),
    "resnet8": Case("ResNet-8, int_s", fliqs_cifar10_resnet8.get_config, {}, (1.15,), ("int4",), ("reinforce", CHOSEN)),
    "deit": Case("DeiT, int_s", fliqs_cifar10_deit.get_config, {}, (1.15,), ("int4",), ("reinforce", CHOSEN)),
    "mobilenetv2": Case(
        "MobileNetV2, int_s", fliqs_cifar10_mobilenetv2.get_config, {}, (1.15,), ("int4",), ("reinforce", CHOSEN)
    ),
    "digits": Case(
        "digits", fliqs_digits.get_config, {}, (1.6,), ("int2", "int3"), ("reinforce", CHOSEN), ("rule", "random 0")
    ),
}


class Network(NamedTuple):
    """One network to train: its name, and what its config and genome are.

    Attributes:
      case: name in `CASES`.
      target: of the cost; None for uniform networks, whose cost is their own.
      name: what it is, in tables.
      changes: settings.
      genome: makes the genome, int32[D], of the experiment and the directory of the case.
    """

    case: str
    target: float | None
    name: str
    changes: dict[str, Any]
    genome: Callable[[Experiment, pathlib.Path], np.ndarray] | None = None

    @property
    def directory(self) -> str:
        """Its directory below the work directory; seeds are below that."""
        at = "uniform" if self.target is None else f"{self.target:g}"
        return f"{self.case}/{at}/{trained_networks.directory_of(self.name)}"


def networks() -> Iterator[Network]:
    """All networks, those that others need first."""
    for case_name, case in CASES.items():
        for name in case.uniform:
            yield Network(case_name, None, name, {"policy": "fixed", "genome": name})
    for case_name, case in CASES.items():
        for target in case.targets:
            for name in case.genomes:
                yield Network(case_name, target, name, {"policy": "fixed"}, GENOMES[name])
            for name in case.policies:
                yield Network(case_name, target, name, POLICIES[name])
        for target in case.together[:1]:
            changes = POLICIES[CHOSEN] | {"targets": case.together}
            yield Network(case_name, target, f"{CHOSEN}, targets in turn", changes)
            yield Network(case_name, target, CHOSEN, POLICIES[CHOSEN])


def config_of(network: Network, seed: int) -> ConfigDict:
    """The config of a network, but for its genome and where the data are."""
    case = CASES[network.case]
    config = case.config()
    config.update({"baselines": (), "seed": seed})
    target = case.targets[0] if network.target is None else network.target
    config.update_from_flattened_dict(case.changes | {"target": target} | network.changes)
    return config


# Genomes.


def _by_rule(experiment: Experiment, directory: pathlib.Path) -> np.ndarray:
    del directory
    return _knapsack(experiment, fisher.prior_losses(experiment.plan.option_bits()))


def _at_random(seed: int, experiment: Experiment, directory: pathlib.Path) -> np.ndarray:
    """The dearest genome within the budget of many that are drawn uniformly below and at the target."""
    del directory
    (budget,), space = experiment.search.budgets, experiment.plan.space
    rng = np.random.default_rng(seed)
    losses = rng.exponential(size=space.exists.shape)
    genome = _knapsack(experiment, losses)
    while pricing.price_exactly(budget.table, genome) < 0.97 * budget.target:
        genome = _knapsack(experiment, rng.exponential(size=losses.shape))
    return genome


def _knapsack(experiment: Experiment, losses: np.ndarray) -> np.ndarray:
    return best_within_budgets(experiment.plan.space, losses, experiment.search.budgets)


@functools.cache
def _sensitivities(directory: pathlib.Path) -> np.ndarray:
    """Noise over signal of the logits of a finished run, float64[L, K]."""
    experiment = finished.read_experiment(directory)
    state, dataset = finished.read_weights(directory, experiment), trial_run.open_data(experiment)
    size = experiment.config.valid_batch_size
    batches = itertools.islice(dataset.eval_batches("valid", batch_size=size), SENSITIVITY_EXAMPLES // size)
    return layer_sensitivity.measure_over(experiment.search, state, batches).noise_to_signal


def _assigned(
    method: Callable[[assignment.Options, float], np.ndarray], experiment: Experiment, directory: pathlib.Path
) -> np.ndarray:
    (budget,) = experiment.search.budgets
    measured = _sensitivities(directory / "uniform" / TRAINED_BEFORE / "seed0")
    return method(assignment.options(experiment.plan, budget.table, measured), budget.target)


GENOMES: dict[str, Callable[[Experiment, pathlib.Path], np.ndarray]] = {
    "rule": _by_rule,
    "random 0": functools.partial(_at_random, 0),
    "random 1": functools.partial(_at_random, 1),
    "greedy": functools.partial(_assigned, assignment.greedy),
    "knapsack": functools.partial(_assigned, assignment.knapsack),
}


def train(network: Network, seed: int, workdir: pathlib.Path, data: dict[str, Any], stop: StopRequested) -> None:
    """Trains a network with a seed; `data` are settings of where the data are."""
    config = config_of(network, seed)
    if network.case != "digits":
        config.update_from_flattened_dict(data)
    if network.genome:
        file = workdir / network.directory / "genome.json"
        if not file.exists():
            config.genome = next(iter(config.formats.split(",")))
            experiment = prepare_experiment(config)
            file.parent.mkdir(parents=True, exist_ok=True)
            write_genome(file, experiment.plan.named(network.genome(experiment, workdir / network.case)))
        config.genome = str(file)
    trained_networks.train_network(config, workdir / network.directory / f"seed{seed}", stop)


def read(workdir: pathlib.Path, seeds: int) -> list[dict[str, Any]]:
    """A row per network of which there is a finished one."""
    rows = []
    for network in networks():
        root = workdir / network.directory
        places = [(network, "")]
        if "targets" in network.changes:
            first, *others = network.changes["targets"]
            places = [(network._replace(target=first), "")]
            places += [(network._replace(target=target), f"target-{target:g}") for target in others]
        for one, below in places:
            found = [path for seed in range(seeds) if (path := root / f"seed{seed}" / below / SUMMARY).exists()]
            if found:
                rows.append(_row(one, [json.loads(path.read_text()) for path in found], found))
    return rows


def _row(network: Network, summaries: list[dict[str, Any]], paths: list[pathlib.Path]) -> dict[str, Any]:
    unit = summaries[0]["target"] / summaries[0]["config"]["target"]
    row = {
        "case": network.case,
        "target": network.target,
        "network": network.name,
        **trained_networks.measured(summaries),
        "cost": [summary["cost"] / unit for summary in summaries],
    }
    costs = [
        [line["expected_cost"] for line in progress.read_metrics(path.parent / METRICS) if "expected_cost" in line]
        for path in paths
    ]
    if all(costs):
        row["expected_cost"] = [[min(each), max(each)] for each in costs]
    return row


def markdown(rows: list[dict[str, Any]]) -> str:
    """A table per case and target, with the networks that have no target of their own in each."""
    lines = []
    for case, target in dict.fromkeys((row["case"], row["target"]) for row in rows if row["target"] is not None):
        unit = CASES[case].changes.get("target_unit", "int2" if case == "digits" else "int4")
        of_target = (row for row in rows if row["case"] == case and row["target"] in (None, target))
        lines += trained_networks.table(f"{CASES[case].title}, {target:g} × {unit}", unit, of_target, "cost")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Trains what is missing, and writes and prints the tables."""
    parser = trained_networks.argument_parser(__doc__, workdir="runs/controllers", seeds=3)
    parser.add_argument("--data_name", default="cifar10", help="another source of CIFAR-10 at 16×16, as in data.name")
    arguments = parser.parse_args()
    data = {"data.name": arguments.data_name, "data.data_dir": arguments.data_dir}
    trained_networks.run(arguments, RESULTS, networks=networks(), data=data, train=train, read=read, markdown=markdown)


if __name__ == "__main__":
    sys.exit(main())
