"""The pictures in docs/."""

import pathlib

DIRECTORY = pathlib.Path(__file__).parents[1] / "docs"


def write(name: str, svg: str) -> None:
    """Stores an SVG on white, so that it can be read on a dark page too."""
    (DIRECTORY / name).write_text(svg.replace("<svg ", '<svg style="background: #ffffff" ', 1))
