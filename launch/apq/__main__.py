"""APQ: a once-for-all network, accuracy predictors, and the best network for any budgets within seconds.

    python -m launch.apq all --config=configs/apq_digits.py --workdir=DIR [--config.key=value …]
    apq all --config=apq_digits --workdir=DIR         (the installed command, with a config of configs/ by name)

`all` runs these steps in turn. An interrupted step is resumed, and a finished one is skipped:

    supernet    trains the once-for-all network
    records     measures the accuracy of subnetworks, in float and under quantisation; --count=N [--quantized] asks for
                N records of one kind, and --workers=ray distributes the work over a Ray cluster
    predictor   fits the accuracy predictors, and measures how many records they need
    search      finds the best genome for each set of budgets
    finish      cuts out, fine-tunes and evaluates the networks found, and writes the report

After the step `predictor`, `rate` tells what the predictors and the costs say of genome files, which may be of FLIQS:

    python -m launch.apq rate --config=… --workdir=DIR --genome=FILE [--genome=FILE …]

`--budget` may be repeated, one network each, and replaces `config.search.budgets`; it is a budget, or a tuple of
budgets that hold at once, over the costs of hwcost/costs.py (launch/training/budgets.py):

    --budget="{'cost': 'bitfusion_latency', 'target': 0.2, 'target_unit': 'absolute'}"

With `--config.search.selection=nsga2` each set of budgets gives the Pareto front of accuracy and costs within it.
"""

import dataclasses
import pathlib
import sys
from functools import partial

if not __package__:  # run as a file: packages beside launch/ and the user's own modules can be imported
    sys.path[:1] = [str(pathlib.Path(__file__).parents[2]), ""]

from absl import app, flags, logging
from rich.console import Console

from launch import command_line, ending

_BUDGET = flags.DEFINE_multi_string("budget", [], "A budget, or a tuple of budgets; may be repeated, one network each.")
_GENOME = flags.DEFINE_multi_string("genome", [], "A genome file to rate; may be repeated.")
_WORKERS = flags.DEFINE_string("workers", "process", "What measures records: process, ray or ray:N.")
_COUNT = flags.DEFINE_integer("count", None, "Number of records, instead of config.records.", lower_bound=1)
_QUANTIZED = flags.DEFINE_bool("quantized", False, "Whether --count is of quantised records, instead of float ones.")


def main(argv: list[str]) -> None:
    """Runs one step of APQ, or all."""
    # Imported here, after the flags are parsed, so that a misspelt flag is reported at once.
    from jax.errors import JaxRuntimeError

    from launch.apq import evolve, finish, fit_predictor, measure_records, rate, train_supernet, workers
    from launch.apq.pipeline import SUMMARY, prepare_pipeline
    from launch.one_writer import only_writer
    from launch.reports import apq_page
    from launch.training import loop
    from launch.training.checkpoints import CheckpointError
    from launch.training.interruption import stop_on_signals

    steps = {
        "supernet": train_supernet.run,
        "records": measure_records.run,
        "predictor": fit_predictor.run,
        "search": evolve.run,
        "finish": finish.run,
    }
    if len(argv) != 2 or argv[1] not in (*steps, "all", "rate"):
        raise app.UsageError(f"expected one of {', '.join(steps)}, all, rate; got {' '.join(argv[1:]) or 'nothing'}")
    if _GENOME.value and argv[1] != "rate":
        raise app.UsageError(f"--genome={_GENOME.value[0]}: expected the command rate; got {argv[1]}")
    logging.set_verbosity(logging.WARNING)
    console, workdir = Console(markup=False), pathlib.Path(command_line.WORKDIR.value or "")
    in_one_line = ending.in_one_line(loop.NotFiniteError, CheckpointError, JaxRuntimeError)
    with in_one_line, workers.started(_WORKERS.value) as mapper:
        counts = {"quantized" if _QUANTIZED.value else "float": _COUNT.value} if _COUNT.value else None
        steps["records"] = partial(measure_records.run, mapper=mapper, counts=counts)
        experiment = prepare_pipeline(command_line.CONFIG.value, workdir, console, _BUDGET.value)
        finish.check(experiment)
        if command_line.CHECK.value:
            experiment.describe()
            return
        if argv[1] == "rate":
            rate.run(experiment, _GENOME.value)
            return
        with only_writer(workdir, experiment.note):
            experiment.claim()
            try:
                with stop_on_signals() as stop:
                    stoppable = dataclasses.replace(experiment, stop=stop)
                    for name, step in steps.items():
                        if argv[1] in (name, "all"):
                            step(stoppable)
                            stoppable.stop_if_asked()
            except loop.Stopped:
                console.print("stopped; the same command goes on from there")
                raise
            if argv[1] in ("finish", "all"):
                apq_page.print_table(experiment.read(SUMMARY), console)
                console.print(f"report: {apq_page.write(workdir)}", soft_wrap=True)


def run() -> None:
    """Runs the command `apq`."""
    command_line.run(main)


if __name__ == "__main__":
    run()
