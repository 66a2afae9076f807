"""Freezes finished runs of earlier versions, which left checkpoints only.

    python -m launch.freeze DIR [DIR …] [--tolerance=0.5] [--data_dir=DIR] [--file=FILE]

Reads the weights from the last checkpoint, recalibrates batch statistics from the data, and writes what current runs
write at their end: network.safetensors and weights.safetensors, or the one that is missing. Tells by how much the
quality on test differs from the summary's, and refuses if that is more than half a point. (Runs recalibrated in another
way before they multiplied codes, which may move a few images.)
"""

import argparse
import pathlib
import sys

if not __package__:  # run as a file: import from the folder of launch/ and from the current one
    sys.path[:1] = [str(pathlib.Path(__file__).parents[1]), ""]

from typing import Any

import jax.numpy as jnp
from rich.console import Console

from launch import ending
from launch.one_writer import only_writer
from launch.training import finished, trial_run
from launch.training.checkpoints import CheckpointError, Checkpoints
from launch.training.run_directory import CHECKPOINTS, CONFIG, NETWORK, SUMMARY, WEIGHTS, read_json
from launch.training.settings import ConfigError


def freeze(directory: pathlib.Path, console: Console, *, tolerance: float, **changes: Any) -> None:
    """Freezes one finished run.

    Args:
      directory: run directory.
      console: where the difference is told.
      tolerance: largest difference of the quality from that of the summary, in points.
      **changes: keys of the run's config to change.

    Raises:
      ConfigError, CheckpointError: the run cannot be read, or is frozen already.
      ValueError: the quality differs too much from that of the summary.
    """
    missing = [name for name in (NETWORK, WEIGHTS) if not (directory / name).exists()]
    if not missing:
        raise ConfigError(f"{directory} has {NETWORK} and {WEIGHTS}: remove the one to make anew")
    experiment = finished.read_experiment(directory, **changes)
    for key, told in (("architecture", "is a search of an architecture"), ("ema", "averages weights")):
        if read_json(directory / CONFIG).get(key):
            files = ", ".join(missing)
            raise ConfigError(f"{directory} {told}: without {SUMMARY}, the command that trained it makes {files} anew")
    # One training of several targets has its checkpoints where its work directory is.
    places = [directory, *([directory.parent] if experiment.search.targets else [])]
    kept = next((place for place in places if (place / CHECKPOINTS).exists()), directory)
    checkpoints = Checkpoints(kept / CHECKPOINTS, read_only=True)
    initial = finished.initial_state(experiment, experiment.trials[0])
    restored = checkpoints.restore(finished.weights_of(initial), say=console.print, partly=True)
    if restored is None:
        raise ConfigError(f"{directory} has no checkpoint")
    state = initial._replace(**restored[1])
    genome = finished.read_genome_of(directory, experiment)
    name = experiment.search.quality.name
    expected = finished.read_quality(directory)
    networks = finished.Networks(experiment, trial_run.open_data(experiment))
    network = networks.recalibrated(networks.frozen(state, jnp.asarray(genome)))
    found = networks.quality(networks.variables(network), "test")
    points = 100 * (found - expected)
    told = f"{found:.2%} {name} on test, {points:+.2f} points from the summary's"
    if not abs(points) <= tolerance:
        raise ValueError(
            f"{directory}: {told}: expected at most {tolerance:g} (--tolerance). Nothing was written: the data or the "
            "versions are not those of the run"
        )
    with only_writer(directory, console.print):
        if NETWORK in missing:
            network.save(directory / NETWORK)
        if WEIGHTS in missing:
            finished.write_weights(directory, state._replace(batch_stats=network.variables["batch_stats"]))
    console.print(f"{directory}: {told}; wrote {' and '.join(missing)}")


def main(argv: list[str] | None = None) -> None:
    """Freezes the runs of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directories", type=pathlib.Path, nargs="+", metavar="DIR")
    parser.add_argument("--tolerance", type=float, default=0.5, help="largest difference to accept, in points")
    parser.add_argument("--data_dir", help="data.data_dir, if the data have moved")
    parser.add_argument("--file", help="data.file, if the data have moved")
    arguments = parser.parse_args(argv)
    moved = {"data.data_dir": arguments.data_dir, "data.file": arguments.file}
    console = Console(width=160, markup=False)
    for directory in arguments.directories:
        with ending.in_one_line(CheckpointError):
            changes = {key: value for key, value in moved.items() if value is not None}
            freeze(directory, console, tolerance=arguments.tolerance, **changes)


if __name__ == "__main__":
    main()
