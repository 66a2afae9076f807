"""Pictures in docs/."""

import pathlib

DIRECTORY = pathlib.Path(__file__).parents[1] / "docs"


def write(name: str, svg: str) -> None:
    """Writes an SVG to docs/ with a white background, for dark pages."""
    (DIRECTORY / name).write_text(svg.replace("<svg ", '<svg style="background: #ffffff" ', 1))
