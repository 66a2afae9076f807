"""The report: one self-contained HTML page about a run, or about several.

    python -m launch.report DIR [DIR …] [--out=FILE] [--json=FILE]

Each DIR is a run directory; the uniform baselines below it belong to it. The page goes to the first DIR, and the table
of results to the JSON file as well, if one is named.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence

if not __package__:  # run as a file: what lies where launch/ does is imported, and what a user names
    sys.path[:1] = [str(pathlib.Path(__file__).parents[1]), ""]

from rich.console import Console

from launch.reports import fliqs_page
from launch.reports.recorded_runs import read_runs


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the report about the run directories named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directories", nargs="+", type=pathlib.Path, metavar="DIR")
    parser.add_argument("--out", type=pathlib.Path, help="where the page goes; DIR/report.html by default")
    parser.add_argument("--json", type=pathlib.Path, help="where the table goes as well")
    arguments = parser.parse_args(argv)
    try:
        path = fliqs_page.write(arguments.directories, arguments.out or arguments.directories[0] / "report.html")
        runs = read_runs(arguments.directories)
        console = Console()
        fliqs_page.print_table(runs, console if console.is_terminal else Console(width=120))
        if arguments.json:
            arguments.json.write_text(json.dumps(fliqs_page.rows(runs), indent=1, ensure_ascii=False) + "\n")
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(f"report: {path}")


if __name__ == "__main__":
    main()
