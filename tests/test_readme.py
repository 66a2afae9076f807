"""README.md and the pages in docs/ do what they say, and their figures are those that are stored."""

import functools
import importlib.util
import json
import pathlib
import re

import numpy as np
import optax
import pytest

from benchmarks import (
    activation_types,
    apq_cifar10,
    apq_quantizers,
    apq_search,
    arithmetic,
    cifar10,
    controllers,
    devices,
    digits,
    exports,
    fliqnas,
    frozen_forms,
    pricing,
    quantizers,
    recommenders,
    search_memory,
    search_step,
    this_device,
    tpu_step,
)
from configs import fliqs_digits
from hwcost.costs import COSTS
from hwcost.genome_file import Genome, LayerChoice
from launch.config_files import load_config
from launch.reports import apq_page, fliqs_page
from launch.reports.recorded_runs import RecordedRun, gain
from launch.training.experiment import prepare_experiment
from launch.training.run_summary import network_summary

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
README, RESULTS, FORMATS, APQ, DEVICES, USAGE = (
    (ROOT / name).read_text()
    for name in ("README.md", "docs/results.md", "docs/formats.md", "docs/apq.md", "docs/devices.md", "docs/usage.md")
)
EVERYTHING = "\n".join(page.read_text() for page in PAGES)


def stored(name):
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())


def without_code(text):
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


@functools.cache
def anchors(page):
    """What the headings of a page are called in links, as GitHub makes it: small letters and hyphens."""
    headings = re.findall(r"^#+ (.*)$", without_code(page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def lost_links(page):
    """The links of a page that lead to no file or folder here, or to no heading of a page."""
    lost = []
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text())):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not link.startswith("https://") and not (target.exists() and (not anchor or anchor in anchors(target))):
            lost.append(link)
    return lost


def words_in_code(pattern):
    """What the pattern's group finds in the code blocks and the code between words of all pages."""
    code = re.findall(r"```.*?```|`[^`]+`", EVERYTHING, re.DOTALL)
    return {word for text in code for word in re.findall(pattern, text, re.MULTILINE)}


def test_the_readme_is_one_page():
    assert len(README.splitlines()) <= 150
    assert len(README.split()) <= 1200


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    assert lost_links(page) == []


def test_a_lost_link_would_be_seen(tmp_path):
    (tmp_path / "other.md").write_text("# What `this` is, in 2 words\n```sh\n# no heading\n```\n")
    page = tmp_path / "page.md"
    page.write_text(
        "[a](other.md#what-this-is-in-2-words) [b](#no) [c](other.md#no-heading) [d](no.md) [e](https://e.g)"
    )
    assert lost_links(page) == ["#no", "other.md#no-heading", "no.md"]


def test_commands_and_configs_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = words_in_code(r"^`?make (\w+)")
    assert targets >= {"search", "test", "apq", "devices"}
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    modules = words_in_code(r"python -m\s([\w.]+)")
    assert modules >= {"launch.fliqs", "launch.report", "benchmarks.digits"}
    for module in modules:
        assert importlib.util.find_spec(module), module
    configs = words_in_code(r"--config=(\w+)\b(?![/.])")
    assert configs >= {"fliqs_digits", "fliqs_cifar10_resnet8"}
    for config in configs:
        assert load_config(config), config


def test_the_python_example_of_the_readme_runs():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names = {}
    exec(code, names)
    assert names["logits"].shape == (8, 10)


def test_the_examples_of_the_page_on_usage_run_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for code in re.findall(r"```python\n(.*?)```", USAGE, re.DOTALL):
        exec(code, names)
    assert optax.tree.norm(names["int4"] - names["logits"]) < 0.1 * optax.tree.norm(names["logits"])
    assert "classifier" in names["mixed"].formats
    assert np.isfinite(optax.tree.norm(names["slopes"]))


def first_seed(rows):
    """What `make search` records, from the stored figures of the first seed."""
    experiment = prepare_experiment(fliqs_digits.get_config())
    runs = []
    for row in rows:
        layers = {
            layer.path: LayerChoice(name, "")
            for layer, name in zip(experiment.plan.workload, row["formats"][0], strict=True)
        }
        summary = network_summary(experiment, experiment.plan.encode(Genome({}, layers)))
        kind = "uniform" if row["network"].startswith("uniform") else "searched"
        summary |= {"name": row["network"], "kind": kind, "quality": "accuracy", "accuracy": row["accuracy"][0]}
        summary["config"] = experiment.config.to_dict()
        runs.append(RecordedRun(ROOT, summary))
    return runs


def test_what_make_search_prints_is_stored():
    rows = json.loads(digits.RESULTS.read_text())["networks"]
    assert digits.markdown(rows) in README
    runs = first_seed(rows)
    assert gain(runs) in README
    block = README.split("`make search` ends like this")[1].split("report:")[0]
    shown = re.findall(r"^  (\S.*)$", block, re.MULTILINE)
    assert [re.split(" {2,}", line) for line in shown] == [
        list(fliqs_page.rows(runs)[0]),
        *(list(row.values()) for row in fliqs_page.rows(runs)),
    ]


def test_the_tables_of_results_are_those_stored():
    assert cifar10.markdown(stored("cifar10")["networks"]) in RESULTS
    assert controllers.markdown(stored("controllers")["networks"]) in RESULTS
    assert fliqnas.markdown(stored("fliqnas")["networks"]) in RESULTS
    assert recommenders.markdown(stored("recommenders")["networks"]) in RESULTS
    activations = activation_types.markdown(stored("activation_types")["networks"])
    assert activations.partition("\n\n")[2] in (ROOT / "docs" / "scale.md").read_text()
    assert search_step.markdown(stored("search_step")) in RESULTS
    step = stored("fliqnas_step")
    told = f"takes {step['time_ratio']:.2f} × one that searches formats alone"
    assert told in RESULTS
    assert f"and {step['memory_ratio']:.2f} × its temporary memory" in RESULTS
    assert search_memory.markdown(stored("search_memory")) in RESULTS
    assert tpu_step.markdown(stored("tpu_step")["planned"]) in EVERYTHING


@pytest.mark.parametrize("name", ["cifar10_bitfusion", "cifar10_this_cpu"])
def test_the_table_of_a_device_is_stored(name):
    for row in stored(name):
        cells = (row[key] for key in ("network", "accuracy", "ms", "bits of each layer"))
        assert f"| {' | '.join(cells)} |" in RESULTS


def test_the_tables_of_exports_are_stored():
    page, measured = (ROOT / "docs" / "export.md").read_text(), stored("exports")
    assert all(table in page for table in exports.markdown(measured).split("\n\n"))
    for run in measured["runs"]:
        for check in (check for file in run["files"].values() for check in file["checks"]):
            assert len(check["differing"]) <= 1e-3 * check["decisions"]


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


def test_what_is_told_of_apq_is_stored():
    assert apq_page.markdown(stored("apq_digits")) in APQ
    assert apq_cifar10.markdown(stored("apq_cifar10")) in APQ
    assert apq_quantizers.markdown(stored("apq_quantizers")) in APQ
    assert apq_search.markdown(stored("apq_search")) in APQ


def test_the_tables_of_formats_are_those_stored():
    measured = json.loads(quantizers.RESULTS.read_text())
    assert arithmetic.markdown(stored("arithmetic")["relative_errors"]) in FORMATS
    assert frozen_forms.markdown(stored("frozen_forms")) in FORMATS
    assert quantizers.peers_table(measured) in FORMATS
    assert quantizers.branching_table(measured) in FORMATS
    assert quantizers.page(measured) == quantizers.PAGE.read_text()
