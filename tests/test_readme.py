"""The README does what it says, and its figures are those that are stored."""

import json
import pathlib
import re

import numpy as np
import optax

from benchmarks import (
    apq_cifar10,
    apq_search,
    assignments,
    cifar10,
    devices,
    pricing,
    quantizers,
    search_memory,
    search_step,
    this_device,
)
from hwcost.costs import COSTS
from launch.reports import apq_page

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DEVICES = (ROOT / "docs" / "devices.md").read_text()
USAGE = (ROOT / "docs" / "usage.md").read_text()


def test_the_python_example_runs():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names = {}
    exec(code, names)
    assert names["logits"].shape == (8, 10)


def test_the_examples_of_the_page_on_usage_run_one_after_the_other():
    names = {}
    for code in re.findall(r"```python\n(.*?)```", USAGE, re.DOTALL):
        exec(code, names)
    assert optax.tree.norm(names["int4"] - names["logits"]) < 0.1 * optax.tree.norm(names["logits"])
    assert "classifier" in names["mixed"].formats
    assert np.isfinite(optax.tree.norm(names["slopes"]))
    for link in re.findall(r"\]\(([^)]+)\)", USAGE):
        assert (ROOT / "docs" / link).exists(), link


def test_its_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in ("search", "apq", "devices", "test"):
        assert f"make {target}" in README + DEVICES
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_its_links_lead_somewhere():
    headings = {re.sub(r"[^a-z0-9 -]", "", line.lower()).strip().replace(" ", "-") for line in README.splitlines()}
    for link in re.findall(r"\]\(([^)]+)\)", README):
        assert link.removeprefix("#") in headings if link.startswith("#") else (ROOT / link).exists(), link


def test_the_table_of_other_networks_is_stored():
    for name in ("cifar10_mobilenetv2", "cifar10_deit"):
        for row in json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text()):
            assert f"| {row['network']} | {row['accuracy']} | {row['Mbit ops']} |" in README


def test_the_table_of_a_device_is_stored():
    for name in ("cifar10_bitfusion", "cifar10_this_cpu"):
        for row in json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text()):
            cells = (row[key] for key in ("network", "accuracy", "ms", "bits of each layer"))
            assert f"| {' | '.join(cells)} |" in README


def test_the_page_on_devices_has_what_is_stored_and_known():
    page = DEVICES
    assert devices.markdown(json.loads(devices.RESULTS.read_text())["rank_correlation"]) in page
    assert this_device.markdown(json.loads(this_device.RESULTS.read_text())["networks"]) in page
    assert pricing.markdown(json.loads(pricing.RESULTS.read_text())["spaces"]) in page
    agreement = json.loads(devices.RESULTS.read_text())["bitfusion"]
    assert agreement["latencies_off"] == 0
    assert f"({agreement['settings']:,} settings" in page
    assert f"{100 * agreement['mean_energy_error']:.1f} % on average" in page
    assert f"{100 * agreement['largest_energy_error']:.1f} % at most" in page
    assert f"{agreement['mobilenetv2_int8_ms']:.2f} ms and {agreement['mobilenetv2_int8_mj']:.2f} mJ" in page
    for name in COSTS:
        assert f"`{name}`" in page
    for link in re.findall(r"\]\(([^)]+)\)", page):
        assert (ROOT / "docs" / link).exists(), link


def test_what_is_told_of_apq_is_stored():
    summary = json.loads((ROOT / "benchmarks" / "results" / "apq_digits.json").read_text())
    assert apq_page.markdown(summary) in README
    assert apq_cifar10.markdown(json.loads(apq_cifar10.RESULTS.read_text())) in README
    assert apq_search.markdown(json.loads(apq_search.RESULTS.read_text())) in README


def test_its_tables_are_those_stored():
    rows = json.loads(cifar10.RESULTS.read_text())["networks"]
    assert cifar10.markdown(rows) in README
    assert search_step.markdown(json.loads(search_step.RESULTS.read_text())) in README
    assert search_memory.markdown(json.loads(search_memory.RESULTS.read_text())) in README
    assert assignments.markdown(json.loads(assignments.RESULTS.read_text())) in README
    measured = json.loads(quantizers.RESULTS.read_text())
    assert quantizers.peers_table(measured) in README
    assert quantizers.branching_table(measured) in README
    assert quantizers.page(measured) == quantizers.PAGE.read_text()
