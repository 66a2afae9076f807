import json

import pytest

from aqt_like.formats import format_space
from fliqs_jax import models
from hwcost import analytic, pricing
from hwcost.format_plan import format_plan
from hwcost.genome_file import write_genome
from launch import cost


def run(capsys, *arguments):
    cost.main(list(arguments))
    return capsys.readouterr().out


def test_json_has_the_figures(capsys):
    figures = json.loads(run(capsys, "--model=mobilenetv2", "--width=1.4", "--format=int8", "--json"))
    assert round(figures["gbops"], 1) == 37.3
    assert figures["gmacs"] == pytest.approx(figures["gbops"] / 64)
    assert figures["weight_bytes"] == figures["weights"]
    assert len(figures["layers"]) == 53
    assert sum(row["gbops"] for row in figures["layers"]) == pytest.approx(figures["gbops"])
    half = json.loads(run(capsys, "--model=mobilenetv2", "--width=1.4", "--format=int4", "--json"))
    for key in ("weight_bytes", "peak_activation_bytes"):
        assert half[key] == figures[key] / 2


def test_peak_activations_are_the_largest_input_and_output(capsys):
    figures = json.loads(run(capsys, "--model=resnet18", "--format=int8", "--json"))
    assert figures["peak_activation_bytes"] == 224 * 224 * 3 + 112 * 112 * 64


def test_the_table_has_every_layer(capsys):
    text = run(capsys, "--model=resnet18", "--image=64", "--layers")
    assert "stage4_block2/conv2/conv" in text
    assert "bit operations" in text


def test_a_genome_file_stands_for_the_format(capsys, tmp_path):
    layers = cost.network_workload("resnet18")
    choices = {f"{layer.path}.format": "int8" if layer.path == "classifier" else "int4" for layer in layers}
    path = tmp_path / "genome.json"
    path.write_text(json.dumps({"choices": choices}))
    mixed = json.loads(run(capsys, "--model=resnet18", f"--format={path}", "--json"))
    uniform = json.loads(run(capsys, "--model=resnet18", "--format=int4", "--json"))
    assert mixed["gbops"] - uniform["gbops"] == pytest.approx(512 * 1000 * (64 - 16) / 1e9)
    with pytest.raises(SystemExit, match="a genome of another network: only one of the two has"):
        run(capsys, "--model=resnet34", f"--format={path}")


def test_a_genome_of_tied_layers_is_priced(capsys, tmp_path):
    layers = cost.network_workload("resnet18")
    plan = format_plan(layers, format_space("int_s"), ["conv(1|2)/conv$: tie"])
    assert len(plan.space) < len(layers)
    genome = [1] + [0] * (len(plan.space) - 1)
    write_genome(tmp_path / "genome.json", plan.named(genome))
    figures = json.loads(run(capsys, "--model=resnet18", f"--format={tmp_path}/genome.json", "--json"))
    assert {row["path"]: row["format"] for row in figures["layers"]} == plan.layer_formats(genome)
    assert figures["gbops"] * 1e9 == pytest.approx(pricing.price_exactly(analytic.BIT_OPERATIONS.table(plan), genome))
    # Of earlier versions, such a file does not say which layers its decisions are about.
    (tmp_path / "genome.json").write_text(json.dumps({"choices": plan.space.decode(genome)}))
    with pytest.raises(SystemExit, match="is of an earlier version, and does not say"):
        run(capsys, "--model=resnet18", f"--format={tmp_path}/genome.json")


def test_a_genome_of_layers_in_a_loop_is_priced(capsys, tmp_path):
    network = ("--model=tests.unusual_networks:looped", "--input=64")
    plan = format_plan(cost.network_workload("tests.unusual_networks:looped", input_shape=(64,)), format_space("int_s"))
    write_genome(tmp_path / "genome.json", plan.named([0, 1, 0, 1, 0, 1, 1]))
    figures = json.loads(run(capsys, *network, f"--format={tmp_path}/genome.json", "--json"))
    formats = {row["path"]: row["format"] for row in figures["layers"]}
    assert (formats["blocks/fc[2]"], formats["blocks/fc[3]"], formats["head"]) == ("int4", "int8", "int8")
    assert figures["gbops"] == pytest.approx((3 * (16 + 64) * 4096 + 64 * 640) / 1e9)


def test_what_is_not_counted_is_told(capsys):
    figures = json.loads(run(capsys, "--model=deit_ti16", "--json"))
    assert figures["outside"]["macs"] == 12 * 2 * 197 * 197 * 192
    assert f"({figures['outside']['share']:.1%}) are in no listed layer" in run(capsys, "--model=deit_ti16")
    assert json.loads(run(capsys, "--model=deit_ti16", "--everything", "--json"))["outside"]["macs"] == 0


def test_a_genome_on_layers_of_other_sizes_is_told(capsys, tmp_path):
    plan = format_plan(cost.network_workload("resnet18"), format_space("int_s"))
    write_genome(tmp_path / "genome.json", plan.named([0] * len(plan.space)))
    for width, told in (("1", ""), ("0.5", "22 of 22 layers have other sizes than in the network of ")):
        cost.main(["--model=resnet18", f"--width={width}", f"--format={tmp_path}/genome.json"])
        error = capsys.readouterr().err
        assert told in error if told else not error


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ("32,32", r"input \(32, 32\) has not the axes of its examples, as in \(32, 32, 3\)"),
        ("32,32,0", "expected the shape"),
    ],
)
def test_shapes_that_a_network_does_not_take_are_refused(capsys, shape, message):
    with pytest.raises(SystemExit, match=message):
        run(capsys, "--model=cifar_resnet", f"--input={shape}")


def test_a_network_of_ones_own(capsys):
    figures = json.loads(run(capsys, "--model=examples.digits_mlp:make_model", "--input=8,8,1", "--json"))
    assert figures["weights"] == 64 * 64 + 64 * 64 + 64 * 10 == 8832


def test_everything_counts_attention_and_squeeze_and_excitation(capsys):
    def figures(name, *more):
        return json.loads(run(capsys, f"--model={name}", "--json", *more))

    plain, whole = figures("deit_ti16"), figures("deit_ti16", "--everything")
    products = [row for row in whole["layers"] if row["kind"] == "product"]
    assert len(products) == 24  # queries with keys, and scores with values, in 12 blocks
    assert sum(row["gmacs"] for row in products) == pytest.approx(12 * 2 * 197 * 197 * 192 / 1e9)
    assert whole["gmacs"] - plain["gmacs"] == pytest.approx(sum(row["gmacs"] for row in products))
    plain, whole = figures("efficientnet_b0"), figures("efficientnet_b0", "--everything")
    assert len(whole["layers"]) == len(plain["layers"]) + 2 * 16
    assert whole["weights"] > plain["weights"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model=resnet19"], "unknown model 'resnet19'"),
        (["--model=resnet18", "--format=int1"], "unknown number format 'int1'"),
        (["--model=resnet18", "--format=missing.json"], "cannot read the genome file missing.json: No such file"),
        (
            ["--model=cifar_resnet", "--width=1.5"],
            "width: expected a whole number above 0; its settings are width=1.5",
        ),
        (["--model=recommender", "--image=3"], "recommender takes no images of this size"),
        (["--model=examples.digits_mlp:make_model"], "needs --input, the shape of one example"),
        (["--model=resnet18", "--width=0"], "model 'resnet18': width: expected a number in 0.02…50"),
        (["--model=resnet18", "--set=width=" + "(" * 10_000], "expected NAME=VALUE"),
        (["--model=deit_b16", "--image=30"], "images of 30×30: expected multiples of 16"),
    ],
)
def test_errors_are_one_line(capsys, arguments, message):
    with pytest.raises(SystemExit, match=message):
        run(capsys, *arguments)


@pytest.mark.parametrize("name", models.MODELS)
def test_every_network_has_a_cost(capsys, name):
    assert json.loads(run(capsys, f"--model={name}", "--json"))["gbops"] > 0


def test_devices_may_be_asked(capsys, tmp_path):
    figures = json.loads(
        run(capsys, "--model=mobilenetv2", "--json", "--cost=bitfusion_latency", "--cost=peak_activation_bytes")
    )
    latency = figures["costs"]["bitfusion_latency"]
    assert (latency["unit"], round(latency["total"], 2)) == ("ms", 9.10)
    assert sum(latency["layers"]) == pytest.approx(latency["total"])
    assert figures["costs"]["peak_activation_bytes"]["total"] == figures["peak_activation_bytes"]
    assert "bitfusion_energy" in run(capsys, "--model=mobilenetv2", "--cost=bitfusion_energy")
    with pytest.raises(SystemExit, match=r"stem/conv: BitFusion computes integers of 2 to 16 bits, e4m3 is none"):
        run(capsys, "--model=mobilenetv2", "--format=e4m3", "--cost=bitfusion_energy")
    with pytest.raises(SystemExit, match=r"cost 'math:pi': expected a hwcost\.cost_model\.CostModel, got float"):
        run(capsys, "--model=mobilenetv2", "--cost=math:pi")


def test_a_model_of_the_users_own_is_priced(capsys):
    network = ["--model=tests.called_networks:Sentences", "--input=ids=6:int32", "--input=mask=6", "--json"]
    figures = json.loads(run(capsys, *network))
    assert (figures["gmacs"], figures["weights"]) == (408e-9, 88)
    with pytest.raises(SystemExit, match=r"image=6: tests.called_networks:Sentences takes no images"):
        run(capsys, *network, "--image=6")
