"""FLIQS: finds every layer's number format while the network trains.

    python -m launch.fliqs --config=configs/fliqs_digits.py --workdir=DIR [--config.key=value …]

The same command goes on with a run that was interrupted.
"""

import pathlib
import sys

from absl import app, flags, logging
from ml_collections import config_flags
from rich.console import Console

from launch import command_line

_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment, a file of configs/.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the run is written, and resumed from.", required=True)


def main(argv: list[str]) -> None:
    """Runs the experiment and its uniform baselines, prints the comparison and writes the report."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    # Imported here so that a misspelt flag is told at once.
    from launch import experiment, loop, report, runs, runtime

    logging.set_verbosity(logging.WARNING)
    console, workdir = Console(), pathlib.Path(_WORKDIR.value)
    try:
        prepared = experiment.prepare(_CONFIG.value)
        directories = runs.run(prepared, workdir, console)
    except (ValueError, loop.NotFiniteError, runtime.CheckpointError) as error:
        sys.exit(f"error: {error}")
    except loop.Stopped:
        console.print("stopped after a checkpoint; the same command goes on from there")
        raise
    report.print_table(report.read_runs(directories), console)
    console.print(f"report: {report.write(directories, workdir / 'report.html')}", soft_wrap=True)


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main, flags_parser=command_line.parse_flags)
