import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from apq_jax import architectures, block_network
from apq_jax.architecture_space import BIT_DECISIONS
from aqt_like.formats import format_pair, parse_format
from fliqs_jax import models
from hwcost import genome_file, pricing, workload
from hwcost.costs import COSTS

PAPER, DIGITS = architectures.find("paper"), architectures.find("digits")


def samples(space, count, seed=0):
    return np.array(jax.vmap(space.sample)(jax.random.split(jax.random.key(seed), count)))


def test_the_paper_s_space_has_the_paper_s_sizes():
    assert len(PAPER.blocks) == 21
    assert [len(PAPER.blocks[i].channels) for i in (0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20)] == [
        5, 7, 7, 11, 11, 21, 21, 25, 25, 49, 49,
    ]  # fmt: skip
    assert (PAPER.architecture_features, PAPER.features(PAPER.largest).shape) == (520, (772,))
    assert [(b.size, b.stride) for b in PAPER.blocks[::4]] == [(112, 2), (56, 2), (28, 2), (14, 1), (14, 2), (7, 1)]
    assert len(PAPER.search_space) == 5 + 21 * 6
    assert {d.name for d in PAPER.search_space.decisions} >= {"stage1.depth", "stage6_block1.depthwise_inputs"}
    assert "stage6.depth" not in {d.name for d in PAPER.search_space.decisions}


@pytest.mark.parametrize("name", architectures.SPACES)
def test_samples_are_valid_and_reach_every_option(name):
    space = architectures.find(name)
    genomes = samples(space, 2000)
    assert np.asarray(space.is_valid(genomes)).all()
    np.testing.assert_array_equal(genomes.max(axis=0), space.search_space.option_counts - 1)
    np.testing.assert_array_equal(genomes.min(axis=0), 0)
    for genome in (space.smallest, space.largest):
        assert bool(space.is_valid(genome))
        space.search_space.decode(genome)


def test_what_is_excluded_is_mended():
    genome = np.array(PAPER.largest)
    genome[PAPER.search_space.index("stage2_block3.depthwise_inputs")] = 0  # 4 bits under a kernel of 7
    assert not bool(PAPER.is_valid(genome))
    made_valid = np.asarray(PAPER.made_valid(genome))
    assert bool(PAPER.is_valid(made_valid))
    assert np.flatnonzero(made_valid != genome).tolist() == [PAPER.search_space.index("stage2_block3.depthwise_inputs")]


def slow_features(space, genome):
    choices = space.search_space.decode(genome)
    kernels, channels, bits = [], [], []
    for block in space.blocks:
        stage = f"stage{block.stage + 1}.depth"
        present = block.place < int(choices.get(stage, space.stages[block.stage].deepest))
        chosen = {kind: choices[f"{block.name}.{kind}"] for kind in ("kernel", "channels", *BIT_DECISIONS)}
        kernels += [float(present and str(k) == chosen["kernel"]) for k in space.kernels]
        channels += [float(present and str(c) == chosen["channels"]) for c in block.channels]
        for kind in BIT_DECISIONS:
            bits += [float(present and f"int{b}" == chosen[kind]) for b in space.bits]
    return kernels + channels + bits


def test_features_are_one_hot_and_zero_where_a_block_is_skipped():
    genomes = samples(PAPER, 20)
    features = jax.jit(jax.vmap(PAPER.features))(genomes)
    for genome, row in zip(genomes, features, strict=True):
        np.testing.assert_array_equal(row, slow_features(PAPER, genome))
    np.testing.assert_array_equal(jax.vmap(PAPER.features)(PAPER.canonical(genomes)), features)
    np.testing.assert_array_equal(PAPER.features(jnp.asarray(genomes)), features)  # without vmap, too


def test_equal_networks_have_equal_canonical_genomes():
    genome = samples(DIGITS, 1)[0]
    genome[DIGITS.search_space.index("stage1.depth")] = 0
    other = np.array(genome)
    other[DIGITS.search_space.index("stage1_block2.channels")] += 1
    other %= DIGITS.search_space.option_counts
    assert (genome != other).any()
    np.testing.assert_array_equal(DIGITS.canonical(genome), DIGITS.canonical(other))


@pytest.mark.parametrize("cost", ["bit_operations", "bitfusion_latency", "peak_activation_bytes", "weight_bytes"])
def test_the_table_prices_what_the_network_s_own_layers_cost(cost):
    space, model = DIGITS, COSTS[cost]
    table = space.cost_table(model)
    for genome in (space.smallest, space.largest, *samples(space, 4)):
        choices = space.search_space.decode(genome)
        layers = workload.trace(space.network(genome), (8, 8, 1), train=False)

        def fmt(path, choices=choices):
            block, _, part = path.partition("/")
            if not block.startswith("stage"):
                return parse_format("int8")
            kind = "depthwise" if part.startswith("depthwise") else "pointwise"
            return format_pair(choices[f"{block}.{kind}_weights"], choices[f"{block}.{kind}_inputs"])

        slow = model.over_layers([float(model.layer_costs(layer, [fmt(layer.path)])[0]) for layer in layers])
        assert pricing.price_exactly(table, genome) == pytest.approx(slow, rel=1e-12)


def test_costs_reach_from_where_to_where_the_original_s_do():
    """Its ranges leave out the block without expansion and the classifier: 2.96 to 46.8 ms, 5.11 to 40.7 mJ."""
    for cost, lowest, highest in (("bitfusion_latency", 2.96, 46.8), ("bitfusion_energy", 5.11, 40.7)):
        model = COSTS[cost]
        table = PAPER.cost_table(model)
        left_out = sum(
            float(model.layer_costs(layer, [parse_format("int8")])[0])
            for layer in PAPER.fixed_layers
            if layer.path.startswith(("first", "classifier"))
        )
        ends = [pricing.price_exactly(table, genome) - left_out for genome in (PAPER.smallest, PAPER.largest)]
        np.testing.assert_allclose(ends, (lowest, highest), rtol=5e-3)


def test_a_genome_file_tells_the_network_with_or_without_its_space():
    genome = samples(DIGITS, 1)[0]
    settings = DIGITS.settings(genome)
    assert json.loads(json.dumps(settings)) == settings
    again = workload.trace(models.create(**settings, classes=10), (8, 8, 1), train=False)
    assert again == workload.trace(DIGITS.network(genome), (8, 8, 1), train=False)
    choices = DIGITS.search_space.decode(genome)
    earlier = genome_file.Genome(choices, {}, {"space": "digits", "image_size": 0})
    assert block_network.of_today(earlier).architecture == settings
    with pytest.raises(ValueError, match="missing"):
        block_network.of_today(dataclasses.replace(earlier, choices={"stage1.depth": "1"}))


def test_means_cannot_be_searched_by():
    with pytest.raises(ValueError, match="a mean over layers"):
        DIGITS.cost_table(COSTS["fpga_area"])
    with pytest.raises(ValueError, match="space 'small': expected one of paper"):
        architectures.find("small")
    assert architectures.find("cifar", 16).blocks[0].size == 16
