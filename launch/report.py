"""The report: one self-contained HTML page about one or several FLIQS runs, or about an APQ experiment.

    python -m launch.report DIR [DIR …] [--out=FILE] [--json=FILE]

Each DIR is a finished run, reported with the uniform baselines below it, or a single DIR is the work directory of a
finished APQ experiment. The table of results is printed. The page is DIR/report.html in the first DIR unless --out
names a file, and --json names a file for the table.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence

if not __package__:  # run as a file: packages beside launch/ and the user's own modules can be imported
    sys.path[:1] = [str(pathlib.Path(__file__).parents[1]), ""]

from rich.console import Console

from launch import ending
from launch.reports import apq_page, fliqs_page
from launch.reports.recorded_runs import gain, read_runs


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the report about the directories named on the command line, and prints its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directories", nargs="+", type=pathlib.Path, metavar="DIR")
    parser.add_argument("--out", type=pathlib.Path, help="file for the page; DIR/report.html by default")
    parser.add_argument("--json", type=pathlib.Path, help="file for the table")
    arguments = parser.parse_args(argv)
    directories, path = arguments.directories, arguments.out or arguments.directories[0] / "report.html"
    terminal = Console(markup=False)
    console = terminal if terminal.is_terminal else Console(width=120, markup=False)
    with ending.in_one_line():
        experiments = [directory for directory in directories if apq_page.holds_experiment(directory)]
        if experiments and len(directories) > 1:
            raise ValueError(
                f"{experiments[0]} is an APQ experiment: expected it alone, got {len(directories)} directories"
            )
        rows = (
            _report_experiment(experiments[0], path, console)
            if experiments
            else _report_runs(directories, path, console)
        )
        if arguments.json:
            arguments.json.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")


def _report_runs(directories: Sequence[pathlib.Path], path: pathlib.Path, console: Console) -> list[dict[str, str]]:
    """Writes the page about FLIQS runs and prints its table; returns the rows of the table."""
    fliqs_page.write(directories, path)
    runs = read_runs(directories)
    fliqs_page.print_table(runs, console)
    console.print(f"report: {path}", soft_wrap=True)
    if gained := gain(runs):
        console.print(gained, soft_wrap=True, highlight=False)
    return fliqs_page.rows(runs)


def _report_experiment(directory: pathlib.Path, path: pathlib.Path, console: Console) -> list[dict[str, str]]:
    """Writes the page about an APQ experiment and prints its table; returns the rows of the table."""
    apq_page.write(directory, path)
    summary = apq_page.read_summary(directory)
    apq_page.print_table(summary, console)
    console.print(f"report: {path}", soft_wrap=True)
    return apq_page.rows(summary)


if __name__ == "__main__":
    main()
