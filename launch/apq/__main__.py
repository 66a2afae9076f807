"""APQ: one once-for-all network, predictors of what is in it, and the best network for any budget in a second.

    python -m launch.apq all --config=configs/apq_digits.py --workdir=DIR [--config.key=value …]
    apq all --config=apq_digits --workdir=DIR         (the same where this is installed, with a shipped config by name)

`all` is these steps in turn; each goes on where it was interrupted, and is skipped where it is done:

    supernet    trains the once-for-all network
    records     measures networks in it, in float and under quantisation; --count=N [--quantized] asks for more of one
                kind, --workers=ray spreads the work over a Ray cluster
    predictor   fits the predictors, and tells how many records they need
    search      finds the best genome for each set of budgets
    finish      cuts the found networks out, fine-tunes and evaluates them, and writes the report

`--budget` may be given several times, instead of `config.search.budgets`: `--budget=bitfusion_latency=6,8,12
--budget=bitfusion_energy=9` asks for three networks, all within 9 mJ, over any cost of hwcost/costs.py. With
`--config.search.selection=nsga2` each set gives the whole front of accuracy and costs below it.
"""

import pathlib
import sys
from functools import partial

if not __package__:  # run as a file: what lies where launch/ does is imported, and what a user names
    sys.path[:1] = [str(pathlib.Path(__file__).parents[2]), ""]

from absl import app, flags, logging
from rich.console import Console

from launch import command_line

_BUDGET = flags.DEFINE_multi_string("budget", [], "NAME=VALUE[,VALUE…], instead of config.search.budgets.")
_WORKERS = flags.DEFINE_string("workers", "process", "What measures records: process, ray or ray:N.")
_COUNT = flags.DEFINE_integer("count", None, "How many records are wanted, not config.records.", lower_bound=1)
_QUANTIZED = flags.DEFINE_bool("quantized", False, "Whether --count is of quantised records, instead of float ones.")


def main(argv: list[str]) -> None:
    """Runs a step of APQ, or all."""
    # Imported here so that a misspelt flag is told at once.
    from apq_jax.evolution import BudgetError
    from launch.apq import evolve, finish, fit_predictor, measure_records, train_supernet, workers
    from launch.apq.pipeline import SUMMARY, prepare_pipeline
    from launch.reports import apq_page
    from launch.training import loop
    from launch.training.checkpoints import CheckpointError

    steps = {
        "supernet": train_supernet.run,
        "records": measure_records.run,
        "predictor": fit_predictor.run,
        "search": evolve.run,
        "finish": finish.run,
    }
    if len(argv) != 2 or argv[1] not in (*steps, "all"):
        raise app.UsageError(f"expected one of {', '.join(steps)}, all; got {' '.join(argv[1:]) or 'nothing'}")
    logging.set_verbosity(logging.WARNING)
    console, workdir = Console(), pathlib.Path(command_line.WORKDIR.value)
    try:
        with workers.started(_WORKERS.value) as mapped:
            counts = {"quantized" if _QUANTIZED.value else "float": _COUNT.value} if _COUNT.value else None
            steps["records"] = partial(measure_records.run, mapped=mapped, counts=counts)
            experiment = prepare_pipeline(command_line.CONFIG.value, workdir, console, _BUDGET.value)
            for name, step in steps.items():
                if argv[1] in (name, "all"):
                    step(experiment)
        if argv[1] in ("finish", "all"):
            apq_page.print_table(experiment.read(SUMMARY), console)
            console.print(f"report: {apq_page.write(workdir)}", soft_wrap=True)
    except (ValueError, BudgetError, loop.NotFiniteError, CheckpointError) as error:
        sys.exit(f"error: {error}")
    except loop.Stopped:
        console.print("stopped after a checkpoint; the same command goes on from there")
        raise


def run() -> None:
    """The command `apq`."""
    command_line.run(main)


if __name__ == "__main__":
    run()
