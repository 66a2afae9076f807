"""FLIQS: finds every layer's number format while the network trains.

    python -m launch.fliqs --config=configs/fliqs_digits.py --workdir=DIR [--config.key=value …]

The same command goes on with a run that was interrupted.
"""

import difflib
import pathlib
import re
import runpy
import sys

from absl import app, flags, logging
from flax.traverse_util import flatten_dict
from ml_collections import config_flags
from rich.console import Console

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


def parse_flags(argv: list[str]) -> list[str]:
    """Parses flags; a config key that does not exist is told in one line, with those that may be meant."""
    try:
        return app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError):
        files = [argument.partition("=")[2] for argument in argv if argument.startswith("--config=")]
        keys = {}
        for path, _, variant in (file.partition(":") for file in files):
            config = runpy.run_path(path)["get_config"](*[variant] if variant else [])
            keys = flatten_dict(config.to_dict(), sep=".")
        given = [
            re.split("[ =]", argument)[0].removeprefix("--config.") for argument in argv if "--config." in argument
        ]
        for key in given:
            if key not in keys:
                name = key.split(".")[-1]
                meant = [k for k in keys if k.split(".")[-1] == name] or difflib.get_close_matches(key, keys)
                hint = f"; did you mean {' or '.join(meant)}?" if meant else f": it has {', '.join(keys)}"
                sys.exit(f"error: the config has no key {key!r}{hint}")
        raise


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main, flags_parser=parse_flags)
