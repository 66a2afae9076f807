import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aqt_like.formats import format_space
from aqt_like.path_rules import RuleError
from hwcost import analytic, pricing
from hwcost.format_plan import format_plan
from hwcost.genome_file import read_genome, write_genome
from hwcost.workload import LayerSpec

FORMATS = format_space("int_s")
PATHS = ("stem", "block1/query", "block1/key", "block1/out", "block2/query", "block2/key", "head")
LAYERS = tuple(
    LayerSpec(path, "dense", 4, 4, (), (), (), (), 1, macs=100 * (i + 1), weights=16) for i, path in enumerate(PATHS)
)


def test_without_rules_every_layer_decides_for_itself():
    plan = format_plan(LAYERS, FORMATS)
    assert [d.name for d in plan.space.decisions] == [f"{path}.format" for path in PATHS]
    genome = jnp.asarray([0, 1, 2, 0, 1, 2, 0])
    np.testing.assert_array_equal(plan.choice(genome), genome)
    assert plan.layer_formats([0, 1, 2, 0, 1, 2, 0])["block1/key"] == "bf16"


def test_pinned_restricted_ignored_and_tied():
    rules = ["stem: bf16", "head: int8, bf16", "out$: ignore", "(query|key)$: int4,int8 tie"]
    plan = format_plan(LAYERS, FORMATS, rules)
    assert [(d.name, d.options) for d in plan.space.decisions] == [
        ("stem.format", ("bf16",)),
        ("block1/*.format", ("int4", "int8")),
        ("block2/*.format", ("int4", "int8")),
        ("head.format", ("int8", "bf16")),
    ]
    assert [layer.path for layer in plan.workload] == [p for p in PATHS if p != "block1/out"]
    genome = np.asarray([0, 1, 0, 1])
    np.testing.assert_array_equal(plan.choice(jnp.asarray(genome)), [2, 1, 1, 0, 0, 2])
    np.testing.assert_array_equal(jax.jit(jax.vmap(plan.choice))(genome[None])[0], [2, 1, 1, 0, 0, 2])
    chosen = plan.layer_formats(genome)
    assert [chosen[layer.path] for layer in plan.workload] == ["bf16", "int8", "int8", "int4", "int4", "bf16"]

    table = analytic.BIT_OPERATIONS.table(plan)
    expected = [100 * 256, 200 * 64, 300 * 64, 500 * 16, 600 * 16, 700 * 256]
    np.testing.assert_array_equal(pricing.price_layers(table, genome), expected)
    assert pricing.price(table, jnp.asarray(genome)) == sum(expected)
    lowest, highest = pricing.reachable_interval(table, plan.space)
    macs = np.asarray([100, 200, 300, 500, 600, 700])
    assert lowest == (macs * [256, 16, 16, 16, 16, 64]).sum()
    assert highest == (macs * [256, 64, 64, 64, 64, 256]).sum()


def test_granularity_of_weights():
    plan = format_plan(
        LAYERS, FORMATS, ["stem: per_tensor", "head: int8 per_block_16", "query$: int4,int8 per_tensor tie"]
    )
    queries = {"block1/query": "per_tensor", "block2/query": "per_tensor"}
    assert plan.granularity_of == {"stem": "per_tensor", "head": "per_block_16", **queries}
    options = {decision.name: decision.options for decision in plan.space.decisions}
    assert options["stem.format"] == ("int4", "int8", "bf16")
    assert options["head.format"] == ("int8",)
    assert options["block1/*.format"] == ("int4", "int8")


def test_layers_that_no_rule_matches_may_have_every_format():
    plan = format_plan(LAYERS, FORMATS, ["block1: int8", "block: int4"])
    layer_formats = plan.layer_formats(plan.uniform_genome("bf16"))
    assert [layer_formats[path] for path in ("block1/query", "block2/query", "stem")] == ["int8", "int4", "bf16"]


def test_uniform_genomes_respect_pins_but_not_restrictions():
    plan = format_plan(LAYERS, FORMATS, ["stem: bf16", "head: int8,bf16"])
    assert plan.layer_formats(plan.uniform_genome("int8"))["stem"] == "bf16"
    with pytest.raises(ValueError, match=r"'int4' is not in the search space: head.format is one of int8, bf16"):
        plan.uniform_genome("int4")


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (["stemm: int8"], "rule 'stemm: int8' matches no layer; near it are stem"),
        (["stem: int5"], "int5 not among the formats: int4, int8, bf16"),
        ([".: ignore"], "the rules ignore every layer"),
    ],
)
def test_rules_that_do_not_fit_the_workload_are_refused(rules, message):
    with pytest.raises(RuleError, match=message):
        format_plan(LAYERS, FORMATS, rules)


REPEATED = tuple(
    LayerSpec(path, "dense", 4, 4, (), (), (), (), 1, macs=16, weights=16)
    for path in ("stem", *(f"blocks/fc[{i}]" for i in range(3)))
)


def test_repetitions_in_a_loop_may_share_a_decision_or_have_formats_of_their_own(tmp_path):
    tied = format_plan(REPEATED, FORMATS, [r"\[\d+\]: tie"])
    assert [decision.name for decision in tied.space.decisions] == ["stem.format", "blocks/fc*.format"]
    assert tied.layer_formats([0, 1])["blocks/fc[2]"] == "int8"
    apart = format_plan(REPEATED, FORMATS, [r"fc\[0\]: bf16", r"fc\[1\]: int4 per_channel"])
    assert [len(decision.options) for decision in apart.space.decisions] == [3, 1, 1, 3]
    write_genome(tmp_path / "genome.json", tied.named([0, 1]))
    own = format_plan(REPEATED, FORMATS)
    np.testing.assert_array_equal(own.encode(read_genome(tmp_path / "genome.json")), [0, 1, 1, 1])


@pytest.mark.parametrize("rule", [r"fc\[1\]: ignore", r"fc\[[12]\]: per_tensor"])
def test_repetitions_in_a_loop_are_ignored_and_share_scales_alike(rule):
    with pytest.raises(RuleError, match=r"blocks/fc\[0\] and blocks/fc\[1\] run in one loop: expected 'ignore' for"):
        format_plan(REPEATED, FORMATS, [rule])
