"""The recommender by formats alone, and with the rank and width of each layer, at equal bit operations (FLIQS, A.13).

    python -m benchmarks.recommenders --sample=FILE [--seeds=1] [--workdir=runs/recommenders] [--only=PATTERN]

Two click logs: a million synthetic lines whose structure, and so the best AUC, is known (`synthetic_clicks`), and a
sample of Criteo's log, FILE, of some thousand lines. `alone` trains the network that FLIQNAS found from new weights
(FLIQS, A.11). Finished networks in the work directory are not trained again. An hour of one core; writes
results/recommenders.json.
"""

import functools
import json
import pathlib
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from benchmarks import synthetic_clicks, trained_networks
from configs import fliqnas_criteo
from launch.training.interruption import StopRequested
from launch.training.run_directory import GENOME, SUMMARY

RESULTS = pathlib.Path(__file__).parent / "results" / "recommenders.json"
SYNTHETIC, SAMPLE = "synthetic", "sample"
LINES = 1_000_000
OF_LOG: dict[str, dict[str, Any]] = {
    SYNTHETIC: {"data.valid_examples": 50_000, "valid_batch_size": 2048},
    SAMPLE: {
        "data.valid_examples": 300,
        "data.buckets": 200,
        "data.test_fraction": 0.2,
        "batch_size": 32,
        "valid_batch_size": 300,
        "epochs": 2.0,
    },
}
TARGETS = (1.5, 2.5, 3.5)  # × int4 of the network of rank 128 and width 512
FLIQNAS, FLIQS = "FLIQNAS int_l", "FLIQS int_l"
UNIFORM = ("int4", "int8", "bf16")
# The paper's policy settles over more steps than there are here: genomes are sampled within the budget, and the one
# found is trained for half of the time.
CONTROLLER = {"within_budget": True, "warmup_fraction": 0.1, "freeze_fraction": 0.5}


class Network(NamedTuple):
    """One network to train.

    Attributes:
      log: `synthetic` or `sample`.
      name: what it is, in tables.
      target: of the cost, × int4; None for the network in one format, whose cost is its own.
      found_by: the name of the search whose network is trained.
    """

    log: str
    name: str
    target: float | None
    found_by: str = ""

    @property
    def directory(self) -> str:
        """Its directory below the work directory; seeds are below that."""
        target = "base" if self.target is None else f"{self.target:g}"
        return f"{self.log}/{target}/{trained_networks.directory_of(self.name)}"


def networks() -> Iterator[Network]:
    """All networks."""
    for log in OF_LOG:
        for name in UNIFORM:
            yield Network(log, name, None)
        for target in TARGETS:
            for name in (FLIQNAS, FLIQS):
                yield Network(log, name, target)
            yield Network(log, f"{FLIQNAS}, alone", target, found_by=FLIQNAS)


def config_of(network: Network, seed: int, workdir: pathlib.Path) -> ConfigDict:
    """The config of a network, but for where the log is."""
    config = fliqnas_criteo.get_config()
    config.update_from_flattened_dict(OF_LOG[network.log])
    config.seed, config.baselines = seed, ()
    config.controller.reinforce.update(CONTROLLER)
    if network.target is None:
        config.architecture, config.policy, config.genome = ConfigDict(), "fixed", network.name
        return config
    config.target = network.target
    if network.found_by:
        found = workdir / network._replace(name=network.found_by).directory / f"seed{seed}"
        trained_networks.give_genome(config, found / GENOME)
    elif network.name == FLIQS:
        config.architecture = ConfigDict()
    return config


def train(network: Network, seed: int, workdir: pathlib.Path, files: dict[str, Any], stop: StopRequested) -> None:
    """Trains a network with a seed; `files` are the logs."""
    config = config_of(network, seed, workdir)
    config.data.file = files[network.log]
    trained_networks.train_network(config, workdir / network.directory / f"seed{seed}", stop)


def read(workdir: pathlib.Path, seeds: int, best: float) -> list[dict[str, Any]]:
    """A row per network of which there is a finished one; `best` is the AUC that the synthetic log allows."""
    rows = []
    for network in networks():
        summaries = trained_networks.summaries(workdir / network.directory, seeds)
        if not summaries:
            continue
        int4 = workdir / Network(network.log, "int4", None).directory / "seed0" / SUMMARY
        rows.append(
            {
                "network": network.name,
                "log": network.log,
                "target": network.target,
                "best": best if network.log == SYNTHETIC else None,
                **trained_networks.measured(summaries, "AUC"),
                "cost_over_int4": [summary["cost"] / json.loads(int4.read_text())["cost"] for summary in summaries],
                "model": [summary["config"]["model"] for summary in summaries],
            }
        )
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    """A table per log."""
    lines = []
    for log in OF_LOG:
        of_log = [row for row in rows if row["log"] == log]
        best = f"; the best AUC is {100 * of_log[0]['best']:.2f}" if of_log and of_log[0]["best"] else ""
        lines += trained_networks.table(f"The {log} log{best}", "int4", of_log, "cost_over_int4", "AUC")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Trains what is missing, and writes and prints the tables."""
    parser = trained_networks.argument_parser(__doc__, workdir="runs/recommenders", seeds=1)
    parser.add_argument("--sample", help="the first lines of Criteo's train.txt")
    arguments = parser.parse_args()
    arguments.workdir.mkdir(parents=True, exist_ok=True)
    log, best = arguments.workdir / "clicks.tsv", arguments.workdir / "best_auc.json"
    if not best.exists():
        best.write_text(json.dumps(synthetic_clicks.write_click_log(log, LINES)))
    trained_networks.run(
        arguments,
        RESULTS,
        networks=networks(),
        data={SYNTHETIC: str(log), SAMPLE: arguments.sample},
        train=train,
        read=functools.partial(read, best=json.loads(best.read_text())),
        markdown=markdown,
    )


if __name__ == "__main__":
    sys.exit(main())
