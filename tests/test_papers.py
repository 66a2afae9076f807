"""docs/papers.md names every item of both papers, and what it names is there."""

import ast
import functools
import importlib.util
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "papers.md").read_text()
FLIQS, APQ = PAGE.split("## APQ: equations", 1)
ROWS = [
    line for line in PAGE.splitlines() if line.startswith("|") and not line.startswith(("|---", "| item", "| section"))
]
TARGETS = sorted(set(re.findall(r"`([\w/]+\.py):([\w.]+)`", PAGE)))
COMMANDS = sorted(set(re.findall(r"`python -m ([\w.]+)", PAGE)))


@pytest.mark.parametrize(
    ("part", "items"),
    [
        (FLIQS, [f"Eq. {i}" for i in range(1, 12)] + [f"Table {i}" for i in range(1, 9)]),
        (FLIQS, [*(f"Figure {i}" for i in range(1, 15)), "Figures 15 to 26"]),
        (APQ, [f"Eq. {i}" for i in range(1, 6)] + ["Algorithm 1", "Table 1", "Table 2"]),
        (APQ, [f"Figure {i}" for i in range(1, 8)]),
    ],
)
def test_every_item_has_a_row(part, items):
    for item in items:
        assert len(re.findall(rf"^\| {re.escape(item)} \|", part, re.MULTILINE)) == 1, item


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[:30])
def test_every_row_names_a_place_or_says_why_not(row):
    assert re.search(r"`[\w/]+\.py:[\w.]+`|`python -m |\.svg\)|not here yet, because", row)


@functools.cache
def names_in(file):
    """Functions, classes, methods and module values of a file, as they are named in the page."""
    names = set()
    for node in ast.parse((ROOT / file).read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
            names |= {
                f"{node.name}.{each.name}" for each in getattr(node, "body", []) if isinstance(each, ast.FunctionDef)
            }
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return names


@pytest.mark.parametrize(("file", "name"), TARGETS)
def test_every_target_exists(file, name):
    assert name in names_in(file)


@pytest.mark.parametrize("module", COMMANDS)
def test_every_command_exists(module):
    assert importlib.util.find_spec(module)


def test_its_links_lead_somewhere():
    for link in re.findall(r"\]\(([^)]+)\)", PAGE):
        assert (ROOT / "docs" / link).exists(), link
