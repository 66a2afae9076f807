"""A family of FLIQS as a space of APQ."""

import jax
import numpy as np
import pytest

from apq_jax import evolution, family_space, records, shrinking, supernet
from aqt_like.formats import format_space
from fliqs_jax.models import elastic, mobilenet
from fliqs_jax.models.mobilenet import MobileNetV2
from hwcost import pricing, workload
from hwcost.costs import COSTS

BASE = MobileNetV2(classes=3, small_images=True, stages=((1, 4, 1, 1), (2, 8, 1, 1)), stem=4, head=8, multiple=2)
FAMILY = mobilenet.family(BASE, (0.5, 1.0, 1.5), (3, 5))
SPACE = family_space.of_family(
    FAMILY, format_space("bf16,int4,int8"), example_shape=(8, 8, 1), classes=3, model={"name": "mobilenetv2"}
)
DECISIONS = SPACE.search_space.decisions
ON_FORMATS = np.asarray([decision.name.endswith(".format") for decision in DECISIONS])


def samples(count):
    return np.asarray(jax.vmap(SPACE.sample)(jax.random.split(jax.random.key(0), count)))


def test_its_decisions_are_those_of_formats_and_of_the_family():
    assert [decision.name for decision in DECISIONS[ON_FORMATS.sum() :]] == [
        "stage1_block1.width",
        "stage1_block1.kernel",
        "stage2_block1.width",
        "stage2_block1.kernel",
    ]
    assert ON_FORMATS.sum() == len(SPACE.layers) == 8
    genomes = samples(200)
    np.testing.assert_array_equal(genomes.max(axis=0), SPACE.search_space.option_counts - 1)
    np.testing.assert_array_equal(genomes.min(axis=0), 0)
    assert SPACE.is_valid(genomes).all()
    # Formats by their bits, wherever they stand.
    assert set(SPACE.largest[ON_FORMATS]) == {0}
    assert set(SPACE.smallest[ON_FORMATS]) == {1}
    assert SPACE.search_space.decode(SPACE.largest)["stage2_block1.width"] == "1.5"
    words = [decision.name.replace(".", "/").split("/")[0] for decision in DECISIONS]
    for word, group in zip(words, SPACE.group, strict=True):
        assert [other == word for other in words] == (SPACE.group == group).tolist()


def test_features_are_the_options_of_the_family_and_then_those_of_formats():
    genome = samples(1)[0]
    order = [*np.flatnonzero(~ON_FORMATS), *np.flatnonzero(ON_FORMATS)]
    slow = [float(genome[number] == option) for number in order for option in range(len(DECISIONS[number].options))]
    np.testing.assert_array_equal(SPACE.features(genome), slow)
    assert SPACE.architecture_features == 2 * (3 + 2)
    float_genomes = records.float_genomes(SPACE, 5, jax.random.key(1))
    np.testing.assert_array_equal(float_genomes[:, ON_FORMATS], np.broadcast_to(SPACE.largest[ON_FORMATS], (5, 8)))
    assert (float_genomes[0] != float_genomes[1]).any()


def test_stages_of_shrinking_follow_what_decisions_shape():
    elastic_decisions = shrinking.elastic_decisions(SPACE)
    kinds = np.asarray([decision.name.rpartition(".")[2] for decision in DECISIONS])
    assert [set(kinds[row]) for row in elastic_decisions] == [set(), {"kernel"}, *[{"kernel", "width"}] * 2]


@pytest.mark.parametrize("cost", ["bit_operations", "bitfusion_energy", "peak_activation_bytes"])
def test_the_table_prices_what_the_network_s_own_layers_cost(cost):
    table = SPACE.cost_table(COSTS[cost])
    for genome in (SPACE.smallest, SPACE.largest, *samples(2)):
        network = FAMILY.network(SPACE.family_genome(genome))
        layers = workload.trace(network, (8, 8, 1), train=False)
        formats = [SPACE.formats[index] for index in SPACE.format_choice(genome)]
        own = [float(COSTS[cost].layer_costs(*pair)[0]) for pair in zip(layers, [[f] for f in formats], strict=True)]
        assert pricing.price_exactly(table, genome) == pytest.approx(COSTS[cost].over_layers(own), rel=1e-9)
    limit = pricing.price_exactly(table, SPACE.smallest)  # On BitFusion, fewer channels may take more energy.
    found = evolution.cheapest(SPACE, {cost: table}, [limit])
    assert pricing.price_exactly(table, found) <= limit


def test_the_once_for_all_network_is_sorted_inside_of_blocks():
    weights, stats = jax.jit(lambda: supernet.init(SPACE, jax.random.key(0)))()
    assert set(weights.kernels["stage2_block1.kernel"]) == {"5to3"}
    ordered, ordered_stats = supernet.sorted_by_importance(SPACE, weights, stats)
    importance = np.abs(ordered.params["stage2_block1"]["project"]["conv"]["kernel"]).sum(axis=(0, 1, 3))
    assert (np.diff(importance) <= 0).all()
    images = jax.random.normal(jax.random.key(1), (2, 8, 8, 1))

    @jax.jit
    def logits(weights, stats):
        params = elastic.specialised(SPACE.family, weights, elastic.options_of(SPACE.search_space, SPACE.largest))
        return SPACE.family.largest.apply({"params": params, "batch_stats": stats}, images, train=False)

    np.testing.assert_allclose(logits(ordered, ordered_stats), logits(weights, stats), atol=2e-6)


def test_genome_files_tell_the_whole_network():
    genome = samples(1)[0]
    named = SPACE.named(genome)
    assert named.architecture["name"] == "mobilenetv2"
    assert named.architecture["kernels"] == [int(named.choices[f"stage{n}_block1.kernel"]) for n in (1, 2)]
    assert SPACE.encode(named).tolist() == genome.tolist()
