import dataclasses

import jax
import numpy as np
import pytest

from apq_jax import architectures, evolution
from apq_jax.architecture_space import BIT_DECISIONS
from apq_jax.evolution import Settings
from apq_jax.restricted import RestrictedSpace
from hwcost import pricing
from hwcost.costs import COSTS

SPACE = dataclasses.replace(architectures.find("digits"), excluded=(5, 2))
TABLES = {"bit_operations": SPACE.cost_table(COSTS["bit_operations"])}


def restricted(kinds):
    """The space, and which of its decisions are free."""
    held = np.asarray(SPACE.with_formats(SPACE.sample(jax.random.key(1)), SPACE.largest))
    free = np.asarray([d.name.rpartition(".")[2] in kinds for d in SPACE.search_space.decisions])
    return RestrictedSpace(SPACE, held, kinds), free


@pytest.mark.parametrize("kinds", [("kernel", "depth"), ("channels",), BIT_DECISIONS])
def test_what_is_held_stays_and_the_rest_is_drawn(kinds):
    space, free = restricted(kinds)
    drawn = np.asarray(jax.vmap(space.sample)(jax.random.split(jax.random.key(0), 200)))
    assert (drawn[:, ~free] == space.held[~free]).all()
    assert np.asarray(SPACE.is_valid(drawn)).all()
    assert (drawn.max(axis=0)[free] > drawn.min(axis=0)[free]).all()
    assert space.is_valid(space.smallest)
    made_valid = SPACE.made_valid(np.where(free, 0, space.held))
    np.testing.assert_array_equal(space.smallest, made_valid)
    other = np.where(free, space.held, SPACE.smallest)
    assert bool(space.is_valid(other)) == (other == space.held)[~free].all()


def test_bits_that_the_whole_space_would_change_stay_and_their_kernel_is_the_smallest():
    held = np.asarray(SPACE.with_formats(SPACE.largest, np.zeros_like(SPACE.largest)))
    space = RestrictedSpace(SPACE, held, ("kernel", "channels", "depth"))
    drawn = np.asarray(jax.vmap(space.sample)(jax.random.split(jax.random.key(0), 200)))
    kinds = np.asarray([d.name.rpartition(".")[2] for d in SPACE.search_space.decisions])
    assert (drawn[:, np.isin(kinds, BIT_DECISIONS)] == 0).all()
    assert (drawn[:, kinds == "kernel"] == 0).all()  # 5×5 is excluded with 2 bits
    channels = drawn[:, kinds == "channels"]
    assert (channels.max(axis=0) > channels.min(axis=0)).all()
    assert space.is_valid(drawn).all()


def test_evolution_changes_what_is_searched_alone():
    space, free = restricted(("channels",))
    limit = 1.1 * pricing.price_exactly(TABLES["bit_operations"], space.smallest)
    result = evolution.make(space, TABLES, Settings(population=20, parents=5, generations=5)).evolve(
        lambda genomes: genomes.sum(axis=1).astype("float32"), [[limit]], jax.random.key(0)
    )
    assert (result.genomes[0][:, ~free] == space.held[~free]).all()
    assert (result.costs <= limit).all()
    assert result.genome[0].sum() > space.smallest.sum()


def test_what_cannot_be_held_or_searched_is_told():
    paper = architectures.find("paper")
    excluded = np.where([d.name.endswith("kernel") for d in paper.search_space.decisions], 2, 0)
    with pytest.raises(ValueError, match="leaves no valid one"):
        RestrictedSpace(paper, excluded, ("channels",))
    with pytest.raises(ValueError, match="no decisions of kind width: there are channels, depth"):
        RestrictedSpace(SPACE, SPACE.largest, ("width",))
