import io
import json
import pathlib
import re

import jax
import numpy as np
import pytest
from rich.console import Console

from aqt_like import packing
from aqt_like.frozen_network import FrozenNetwork, Kernel, Layer
from launch import report
from launch.reports import architecture_cards, charts, figures, fliqs_page, recorded_runs
from launch.training import progress

DOCS = pathlib.Path(__file__).parents[2] / "docs"


def summary(name, bits, accuracy, *, policy="fixed", formats="int_s"):
    kind = "searched" if policy == "reinforce" else "uniform"
    layers = [
        {
            "path": f"l{i}",
            "format": {16: "bf16"}.get(b, f"int{b}"),
            "bits": b,
            "macs": 1000,
            "weights": 9,
            "cost": b * b * 1e3,
            "cost_is_estimate": False,
        }
        for i, b in enumerate(bits)
    ]
    decisions = [{"name": f"l{i}.format", "options": ["int4", "int8", "bf16"]} for i in range(len(bits))]
    cost = sum(layer["cost"] for layer in layers)
    return {
        "accuracy": accuracy, "quality": "accuracy", "cost": cost, "target": 36800.0,
        "genome": [0] * len(bits), "relative_cost": cost / 36800,
        "cost_name": "bit_operations", "cost_unit": "bit operations",
        "budgets": [{"name": "bit_operations", "unit": "bit operations", "cost": cost, "target": 36800.0}],
        "layers": layers,
        "decisions": decisions, "name": name, "kind": kind, "policy": policy, "seconds": 12.5,
        "footprint": {"kilowatt_hours": 0.02, "co2e_kilograms": 0.009, "dollars": [0.1, 0.3]},
        "steps_per_second": 80.0, "seed": 0, "device": "1 × cpu", "versions": {"jax": "0"},
        "config": {
            "data": {"name": "<digits>"}, "formats": formats, "footprint": {"watts": 100.0},
            "controller": {"reinforce": {"reward": "absolute", "warmup_fraction": 0.25, "gamma": 0.3}},
        },
    }  # fmt: skip


@pytest.fixture
def run_directories(tmp_path):
    """A search with two uniform networks below it, and another search."""

    def write(directory, content, lines=()):
        directory.mkdir(parents=True)
        (directory / "summary.json").write_text(json.dumps(content))
        (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    lines = [
        {
            "step": step, "seconds": step / 80, "steps_per_second": 80.0, "loss": 1.0, "train_quality": 0.5,
            "valid_quality": 0.5, "relative_cost": 1.1, "reward": 0.4, "entropy": 2.0,
            "policy": [[0.5, 0.3, 0.2]] * 2,
        }
        for step in (10, 20, 30)
    ]  # fmt: skip
    write(tmp_path / "a", summary("FLIQS int_s", (8, 4), 0.70, policy="reinforce"), lines)
    write(tmp_path / "a" / "uniform-bf16", summary("uniform bf16", (16, 16), 0.72))
    write(tmp_path / "a" / "uniform-int4", summary("uniform int4", (4, 4), 0.68))
    write(tmp_path / "b", summary("FLIQS <int_l>", (5, 6), 0.71, policy="reinforce"), lines)
    return tmp_path


def test_uniform_runs_follow_their_search_cheapest_first_and_once(run_directories):
    runs = recorded_runs.read_runs(
        [run_directories / "a", run_directories / "b", run_directories / "a" / "uniform-int4"]
    )
    assert [run.summary["name"] for run in runs] == ["FLIQS int_s", "uniform int4", "uniform bf16", "FLIQS <int_l>"]
    assert [run.searched for run in runs] == [True, False, False, True]
    assert runs[0].mean_bits == 6
    assert [run.bits_over_depth for run in runs] == ["8 4", "4×2", "16×2", "5 6"]


def test_runs_of_one_name_are_told_apart(run_directories):
    other = run_directories / "again"
    other.mkdir()
    (other / "summary.json").write_text((run_directories / "a" / "summary.json").read_text())
    below = other / "uniform-int4"
    below.mkdir()
    (below / "summary.json").write_text((run_directories / "a" / "uniform-int4" / "summary.json").read_text())
    names = [run.summary["name"] for run in recorded_runs.read_runs([run_directories / "a", other])]
    assert names == [
        "FLIQS int_s (a)", "uniform int4 (a)", "uniform bf16", "FLIQS int_s (again)", "uniform int4 (again)",
    ]  # fmt: skip


def test_names_of_directories_that_share_their_first_part_are_whole(tmp_path):
    directories = [tmp_path / "a" / "1" / "u", tmp_path / "a" / "2" / "u", tmp_path / "b" / "u"]
    assert recorded_runs._telling_apart(directories) == ["a/1/u", "a/2/u", "b/u"]
    assert recorded_runs._telling_apart([tmp_path / "a", tmp_path / "a" / "b"]) == ["a", "b"]


def test_runs_on_other_data_are_not_compared(run_directories):
    other = run_directories / "other"
    other.mkdir()
    (other / "summary.json").write_text((run_directories / "b" / "summary.json").read_text().replace("digits", "cifar"))
    with pytest.raises(ValueError, match=r"other has accuracy on <cifar>, .*/a accuracy on <digits>: expected"):
        recorded_runs.read_runs([run_directories / "a", other])
    (other / "summary.json").write_text("{}")
    with pytest.raises(ValueError, match=r"summary.json is not the summary of a run: KeyError"):
        recorded_runs.read_runs([other])


def test_a_gain_is_over_baselines_of_the_same_layers(run_directories):
    runs = recorded_runs.read_runs([run_directories / "a"])
    for run in runs[1:]:
        run.summary["layers"][0]["macs"] += 1
    assert recorded_runs.gain(runs) is None
    assert recorded_runs.uniform_gap(runs) is None


def family(directory, *, quality="accuracy", model="small", macs=1000, values=(0.93, 0.92, 0.99)):
    """Writes a search and its two uniform baselines, which are of another network or quality than those above."""
    names = (
        ("", "FLIQS int_s", (8, 4)),
        ("uniform-int4", "uniform int4", (4, 4)),
        ("uniform-int8", "uniform int8", (8, 8)),
    )
    for (place, name, bits), value in zip(names, values, strict=True):
        content = summary(name, bits, value, policy="fixed" if place else "reinforce")
        content |= {"quality": quality, quality: content.pop("accuracy")}
        content["config"]["model"] = {"name": model}
        for layer in content["layers"]:
            layer["macs"] = macs
        (directory / place).mkdir(parents=True)
        (directory / place / "summary.json").write_text(json.dumps(content))
    return directory


@pytest.mark.parametrize("others", [{"model": "big"}, {"macs": 3000}, {"quality": "AUC"}])
def test_a_gap_is_among_runs_of_one_network_and_quality(others, tmp_path):
    first = family(tmp_path / "first", values=(0.80, 0.78, 0.82))
    alone = recorded_runs.read_runs([first])
    runs = recorded_runs.read_runs([first, family(tmp_path / "second", **others)])
    assert len(runs) == 6
    for found in (recorded_runs.uniform_gap(alone), recorded_runs.uniform_gap(runs)):
        assert found.points == pytest.approx(4)
        assert found.recovered(runs[0].summary) == pytest.approx(0.5)
    told = recorded_runs.gain(runs)
    assert "2.00 points above uniform int4" in told and "2.00 points below uniform int8" in told
    assert len({run.summary["name"] for run in runs}) == 6


def test_a_gap_is_among_runs_on_one_data_set(tmp_path):
    first, second = (
        family(tmp_path / name, values=values) for name, values in (("a", (0.8, 0.78, 0.82)), ("b", (1,) * 3))
    )
    for path, file in (
        (first, "logs/a.txt"),
        (first / "uniform-int4", "moved/a.txt"),
        (second / "uniform-int8", "b.txt"),
    ):
        content = json.loads((path / "summary.json").read_text())
        content["config"]["data"]["file"] = file
        (path / "summary.json").write_text(json.dumps(content))
    runs = recorded_runs.read_runs([first, second / "uniform-int8", second / "uniform-int4"])
    assert [s["name"] for s in recorded_runs._uniform_baselines(runs)] == ["uniform int4 (a)"]
    assert recorded_runs.uniform_gap(runs) is None


def test_qualities_have_columns_of_their_own(tmp_path):
    directories = [family(tmp_path / "a"), family(tmp_path / "b", quality="[b]AUC[/b]")]
    runs = recorded_runs.read_runs(directories)
    rows = fliqs_page.rows(runs)
    assert [(row["accuracy"], row["[b]AUC[/b]"]) for row in rows[::3]] == [("93.00 %", ""), ("", "93.00 %")]
    assert {run.summary["quality"] for run in recorded_runs.runs_drawn_together(runs)} == {"accuracy"}
    console = Console(file=io.StringIO(), width=200)
    fliqs_page.print_table(runs, console)
    assert "[b]AUC[/b]" in console.file.getvalue()


def with_architecture(content, *, channels, kernels, shares, rho, kind="searched", searched=True):
    """A summary of a network like `content`'s; of a layer with no channels, without that layer."""
    sized = [
        layer | {"channels": width, "kernel": [size] * 2}
        for layer, width, size in zip(content["layers"], channels, kernels, strict=True)
    ]
    base = [layer | {"channels": 8} for layer in sized]
    width = {"name": "l0.width", "options": ["1", "2"] if searched else ["1"]}
    return content | {
        "kind": kind,
        "layers": [layer for layer in sized if layer["channels"]],
        "decisions": [*content["decisions"], width],
        "genome": [*content["genome"], 0],
        "base": {"format": "int4", "cost": 3.0, "log_shares": shares, "layers": base},
        "rank_correlations": {"channels": {"rho": rho, "layers": 3}} if searched else {},
        "config": content["config"] | {"model": {"name": "net"}},
    }


def test_searches_of_formats_and_of_architectures_are_drawn_side_by_side(tmp_path):
    both = with_architecture(
        summary("FLIQNAS", (8, 4, 4), 0.9, policy="reinforce"), channels=(4, 16, 0), kernels=(3, 1, 1),
        shares={"bits": np.log(2.0), "channels": np.log(0.5), "depth": np.log(3.0)}, rho=-0.5,
    )  # fmt: skip
    nas = with_architecture(
        summary("NAS", (4, 4, 4), 0.8, policy="reinforce"), channels=(8, 8, 8), kernels=(3, 1, 1),
        shares={"bits": 0.0, "channels": 0.0, "depth": 0.0}, rho=None,
    )  # fmt: skip
    nas["decisions"] = [each | {"options": ["int4"]} for each in nas["decisions"][:3]] + nas["decisions"][3:]
    formats = with_architecture(
        summary("FLIQS", (8, 8, 4), 0.8, policy="reinforce"), channels=(8, 8, 8), kernels=(3, 1, 1),
        shares={"bits": 1.0}, rho=None, searched=False,
    )  # fmt: skip
    runs = {
        "both": both,
        "nas": nas,
        "formats": formats,
        "uniform": formats | {"kind": "uniform", "name": "uniform int4"},
    }
    assert [figures.searched_in(run) for run in runs.values()] == ["both", "architecture", "formats", ""]
    for name, content in runs.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").write_text(json.dumps(content))
    page = fliqs_page.write([tmp_path / name for name in runs], tmp_path / "report.html").read_text()
    assert "FLIQNAS costs 3.00 × the base network in int4: × 2.00 by bits, × 0.50 by channels and × 3.00 by dep" in page
    assert "Over the 3 layers whose channels are searched, the rank correlation of bits and channels is −0.50." in page
    assert "<td>NAS</td><td>undefined</td><td>not searched</td>" in page
    blocks, spent = (
        re.search(rf"<h2>{heading}</h2>.*?</svg>", page, re.DOTALL)[0]
        for heading in ("Blocks: channels, formats, kernels", "What the cost went into")
    )
    for title in (
        "FLIQNAS, formats and architecture searched",
        "NAS, architecture searched",
        "FLIQS, formats searched",
    ):
        assert f">{title}: " in blocks
    assert "uniform" not in blocks and ">uniform int4</text>" in spent
    assert all(f">{text}</text>" in spent for text in ("bits", "channels", "depth", "× 3.00"))
    unknown = {**both["base"], "log_shares": None, "why_none": "the table has no l0"}
    (card,) = architecture_cards._allocation_cards([both | {"base": unknown}])
    assert "Not known: the table has no l0." in card
    assert architecture_cards.cards([formats]) == []


def test_what_costs_nothing_and_what_metrics_lack_is_left_out():
    free, paid = summary("uniform int4", (4, 4), 0.7), summary("FLIQS", (8, 4), 0.75, policy="reinforce")
    free["cost"] = 0
    assert recorded_runs._against(paid, free) == "5.00 points above uniform int4, which costs nothing"
    for layer in free["layers"]:
        layer["cost"] = layer["macs"] = 0
    assert figures.cost_shares(free)
    assert recorded_runs.RecordedRun(DOCS, free).mean_bits == 0
    lines = [{"step": step, "loss": 1.0} for step in (1, 2)]
    (card,) = fliqs_page._training_cards(paid, lines)
    assert "<h2>Loss</h2>" in card


def test_gap_and_its_recovered_share(run_directories):
    runs = recorded_runs.read_runs([run_directories / "a"])
    gap = recorded_runs.uniform_gap(runs)
    assert gap.points == pytest.approx(4)
    assert gap.recovered(runs[0].summary) == pytest.approx(0.5)
    noise = recorded_runs.Gap(gap.cheapest, gap.dearest | {"accuracy": 0.6899})
    assert noise.recovered(runs[0].summary) is None
    assert recorded_runs.uniform_gap(runs[:2]) is None


def test_page_is_self_contained_escaped_and_complete(run_directories):
    path = fliqs_page.write([run_directories / "a", run_directories / "b"], run_directories / "report.html")
    page = path.read_text()
    assert "&lt;digits&gt;" in page and "<digits>" not in page
    assert "FLIQS &lt;int_l&gt;" in page
    assert "of which it recovers 50 %." in page
    assert "Training drew 20 Wh at 100 W, which stand for 9 g of CO2e and $0.1 to $0.3" in page
    assert page.count("<svg") == page.count("</svg>") == 9
    assert len(re.findall(r"aria-label=", page)) == 9
    assert "<script" not in page and "<link" not in page
    for heading in (
        "Accuracy against cost",
        "Format of each layer",
        "Results",
        "Reward",
        "The policy over time",
        "Settings",
    ):
        assert f"<h2>{heading}</h2>" in page


def test_the_file_of_the_network_is_shown(run_directories):
    def layer(fmt, shape):
        packed = packing.pack_values(np.ones(shape), np.full((1, shape[1]), 0.3), fmt)
        return Layer(fmt, Kernel(packed, shape, (1,)), fmt, 0.5, 0)

    path = run_directories / "a" / "network.safetensors"
    others = {"params": {"l0": {"bias": np.ones(6, np.float32)}, "plain": {"kernel": np.ones((2, 6), np.float32)}}}
    omitted = {f"params/l{i}/kernel": jax.ShapeDtypeStruct((10, 6), np.float32) for i in range(2)}
    FrozenNetwork({"l0": layer("int8", (10, 6)), "l1": layer("int4", (10, 6))}, others, omitted).save(path)
    page = fliqs_page.write([run_directories / "a"], run_directories / "report.html").read_text()
    stored, whole = 60 + 30 + 2 * 6 * 4 + 2 * 4 + 72, 4 * (120 + 18)
    assert (
        f"has {path.stat().st_size:,} bytes: {stored:,} of the network, {stored / whole:.3f} × the {whole:,} of" in page
    )
    assert "Not quantised, in bytes: plain/kernel 48, bias 24." in page
    assert page.count("<svg") == 10
    (run_directories / "b" / "network.safetensors").write_bytes(path.read_bytes())
    with pytest.raises(SystemExit, match="it is of another run"):
        report.main([str(run_directories / "b")])
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(SystemExit, match=r"network.safetensors is truncated"):
        report.main([str(run_directories / "a")])


def test_a_page_of_a_single_run_without_metrics(run_directories):
    path = fliqs_page.write([run_directories / "a" / "uniform-int4"], run_directories / "one.html")
    assert path.read_text().count("<svg") == 3


def test_command_line(run_directories, capsys):
    table = run_directories / "table.json"
    report.main([str(run_directories / "a"), f"--json={table}"])
    assert (run_directories / "a" / "report.html").exists()
    assert "uniform bf16" in capsys.readouterr().out
    first = json.loads(table.read_text())[0]
    assert (first["network"], first["accuracy"], first["bits of each layer"]) == ("FLIQS int_s", "70.00 %", "8 4")
    with pytest.raises(SystemExit, match="holds no finished run"):
        report.main([str(run_directories)])


def test_names_are_drawn_as_they_are(run_directories):
    path = run_directories / "a" / "summary.json"
    stored = json.loads(path.read_text())
    stored["name"] = "a_1 < $x_1$ & $2"
    stored["layers"][0]["path"], stored["layers"][1]["path"] = "$l_0$", "a$b_$c"
    stored["quality"], stored["<i>[b]q"] = "<i>[b]q", stored.pop("accuracy")
    path.write_text(json.dumps(stored))
    page = fliqs_page.write([run_directories / "a"], run_directories / "report.html").read_text()
    pictures = "".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL))
    assert ">a_1 &lt; $x_1$ &amp; $2</text>" in pictures  # beside its point
    assert ">$l_0$</text>" in pictures and ">a$b_$c</text>" in pictures
    assert "<i>" not in page and "&lt;i&gt;[b]q" in pictures and "<h2>&lt;i&gt;[b]q against cost</h2>" in page


def test_short_names_stay_different():
    paths = [f"encoder/layers_{i}/self_attention/{name}" for i in range(12) for name in ("query", "output_projection")]
    short = figures.short_names([*paths, "head", "stage1_block2/conv1"])
    assert len(set(short)) == 26
    assert max(map(len, short)) <= 32
    assert short[0] == "encoder/layers_0/self…tion/query"
    assert short[-2:] == ["head", "s1.2/conv1"]
    alike = ["a" * 20 + middle + "b" * 20 for middle in "xy"]
    assert figures.short_names(alike) == alike


def test_labels_beside_points_hide_no_other(run_directories):
    runs = [
        summary(name, (4, 4), accuracy, policy="reinforce")
        for name, accuracy in (("one", 0.7), ("two", 0.7), ("three", 0.7001))
    ]
    svg = figures.pareto(runs)
    places = re.findall(
        r'text-anchor: (start|middle|end)[^>]*x="([\d.]+)" y="([\d.]+)"[^>]*>(one|two|three)</text>',
        svg,
    )
    assert {name for *_, name in places} == {"one", "two", "three"}
    boxes = []
    for anchor, x, y, name in places:
        width = 4.2 * len(name)
        left = float(x) - {"start": 0, "middle": 0.5, "end": 1}[anchor] * width
        assert not any(
            left < right and other < left + width and abs(float(y) - base) < 7 for other, right, base in boxes
        )
        boxes.append((left, left + width, float(y)))


def test_pictures_in_the_documentation_are_small():
    sizes = {path.name: path.stat().st_size for path in DOCS.iterdir()}
    assert sizes
    assert not {name: size for name, size in sizes.items() if size > 200_000}


def test_labels_are_spread_apart_in_order():
    placed = charts.spread([1.0, 1.01, 5.0, 0.99], 0.5)
    assert placed[2] == 5.0
    assert placed[0] - placed[3] >= 0.5 - 1e-6
    assert placed[1] - placed[0] >= 0.5 - 1e-6
    assert sum(placed) == pytest.approx(8.0)
    assert charts.spread([], 1.0) == []


def test_colours_grow_cooler_with_bits():
    assert charts.bit_colour(4) != charts.bit_colour(8) != charts.bit_colour(16)
    assert charts.bit_colour(32) == charts.bit_colour(16)


def test_metrics_survive_a_line_cut_short(run_directories):
    path = run_directories / "a" / "metrics.jsonl"
    path.write_text(path.read_text()[:-20])
    assert [line["step"] for line in progress.read_metrics(path)] == [10, 20]


def test_what_is_in_no_layer_is_told_where_the_cost_is(run_directories):
    directory = run_directories / "b"
    content = json.loads((directory / "summary.json").read_text())
    page = fliqs_page.write([directory], directory / "report.html").read_text()
    assert "in no listed layer" not in page  # A run of an earlier version does not say.
    content["outside"] = {"macs": 3000, "share": 0.6, "places": [{"path": "embed", "macs": 3000}]}
    (directory / "summary.json").write_text(json.dumps(content))
    page = fliqs_page.write([directory], directory / "report.html").read_text()
    assert "3,000 of 5,000 MACs (60.0%) are in no listed layer and stay in float, unpriced: embed (3,000)." in page
