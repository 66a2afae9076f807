"""Card of the report about the files that `launch.export` made of a network."""

import json
import pathlib
from typing import Any

from launch.reports.page import card, html_table

DESCRIPTION = pathlib.Path("export") / "export.json"  # in the directory of the run
_COLUMNS = ("file", "runtime", "bytes", "× float32", "ms", "float32 / ms", "accuracy", "differ", "in integers")


def cards(directory: pathlib.Path) -> list[str]:
    """The card about the files in `export/` of a run; none if there are none.

    Raises:
      ValueError: they are not described as `launch.export` does.
    """
    path = directory / DESCRIPTION
    if not path.exists():
        return []
    try:
        document = json.loads(path.read_text())
        form = document["form"]
        rows = [_row(name, file, check) for name, file in document["files"].items() for check in _whole(file)]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not of launch.export: {error!r}") from error
    if not rows:
        return []
    text = (
        f"What runtimes made of the files, in the {form} form, on test examples. The last column counts the "
        "products that a runtime computes in integers. Where it computes in float32, fewer bits make a file smaller, "
        "not faster. Milliseconds are of one input, in turn with the same network in float32."
    )
    return [
        card("The network in other runtimes", text, html_table(_COLUMNS, [(row, False) for row in rows]), wide=True)
    ]


def _whole(file: dict[str, Any]) -> list[dict[str, Any]]:
    """The checks that tell a quality."""
    return [check for check in file["checks"] if "quality" in check]


def _row(name: str, file: dict[str, Any], check: dict[str, Any]) -> list[str]:
    speeds = {speed["runtime"]: speed for speed in file.get("speed", ())}
    speed, size = speeds.get(check["runtime"]), file.get("bytes_in_float32")
    kernels = check["integer_kernels"]
    return [
        name,
        check["runtime"],
        f"{file['bytes']:,}",
        f"{file['bytes'] / size:.3f}" if size else "",
        f"{speed['milliseconds']:.3g}" if speed else "",
        f"{speed['milliseconds_in_float32'] / speed['milliseconds']:.2f}" if speed else "",
        f"{100 * check[check['quality']]:.2f} %",
        f"{len(check['differing']):,} of {check['decisions']:,}",
        f"{kernels[0]} of {kernels[1]} products" if kernels else "none",
    ]
