"""FLIQS: searches the number format of every layer while the network trains.

    python -m launch.fliqs --config=configs/fliqs_digits.py --workdir=DIR [--config.key=value …]
    fliqs --config=fliqs_digits --workdir=DIR         (the same where this is installed, with a shipped config by name)

The same command resumes an interrupted run.
"""

import pathlib
import sys

if not __package__:  # run as a file: import from the folder of launch/ and from the current one
    sys.path[:1] = [str(pathlib.Path(__file__).parents[1]), ""]

from absl import app, logging
from rich.console import Console

from launch import command_line, ending


def main(argv: list[str]) -> None:
    """Runs the experiment and its uniform baselines, prints the comparison and writes the report."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    # Imported here so that a misspelt flag is reported without delay.
    from jax.errors import JaxRuntimeError

    from launch.reports import fliqs_page, recorded_runs
    from launch.training import dry_run, given_genome, loop, runs
    from launch.training.checkpoints import CheckpointError
    from launch.training.experiment import prepare_experiment
    from launch.training.run_directory import NETWORK

    logging.set_verbosity(logging.WARNING)
    console = Console(markup=False)
    with ending.in_one_line(loop.NotFiniteError, CheckpointError, JaxRuntimeError):
        prepared = prepare_experiment(command_line.CONFIG.value)
        if remark := given_genome.remark(command_line.CONFIG.value, prepared.config):
            console.print(remark, soft_wrap=True)
        if command_line.CHECK.value:
            dry_run.check(prepared, console)
            return
        workdir = pathlib.Path(command_line.WORKDIR.value or "")
        try:
            directories = runs.run(prepared, workdir, console)
        except loop.Stopped:
            console.print("stopped after a checkpoint; the same command goes on from there")
            raise
        finished = recorded_runs.read_runs(directories)
        fliqs_page.print_table(finished, console)
        if (workdir / NETWORK).exists():
            console.print(f"network: {workdir / NETWORK}", soft_wrap=True)
        console.print(f"report: {fliqs_page.write(directories, workdir / 'report.html')}", soft_wrap=True)
        if gained := recorded_runs.gain(finished):
            console.print(gained, soft_wrap=True, highlight=False)


def run() -> None:
    """Entry point of the command `fliqs`."""
    command_line.run(main)


if __name__ == "__main__":
    run()
