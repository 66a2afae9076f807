"""What evolution is compared with searches the same space, at the same prices, for the same fitness."""

import dataclasses

import jax
import numpy as np

from apq_jax import architectures, predictor
from apq_jax.evolution import Settings
from benchmarks import apq_original
from hwcost import pricing
from hwcost.costs import COSTS
from launch.apq.fit_predictor import predict_accuracies

SPACE = dataclasses.replace(architectures.find("digits"), excluded=(5, 2))
COST = COSTS["bit_operations"]
TABLE = SPACE.cost_table(COST)
PREDICTOR = predictor.init(SPACE.features(SPACE.smallest).shape[0], np.asarray([-1.0, 1.0]), jax.random.key(0))
SETTINGS = Settings(population=20, parents=5, generations=40)


def spec_for(genome):
    choices = SPACE.search_space.decode(genome)
    return {
        "depth": [int(choices[f"stage{number + 1}.depth"]) for number in range(len(SPACE.stages))],
        **{
            name: [int(choices[f"{block.name}.{name}"].removeprefix("int")) for block in SPACE.blocks]
            for name in apq_original.PER_BLOCK
        },
    }


def test_prices_and_fitness_are_ours():
    released = apq_original.AsReleased(SPACE, COST, PREDICTOR, SETTINGS)
    genomes = np.asarray(jax.vmap(SPACE.sample)(jax.random.split(jax.random.key(1), 20)))
    specs = [spec_for(genome) for genome in genomes]
    exact = [pricing.price_exactly(TABLE, genome) for genome in genomes]
    np.testing.assert_allclose([released._cost(spec) for spec in specs], exact, rtol=1e-12)
    np.testing.assert_allclose(apq_original.prices(TABLE)(genomes), exact, rtol=1e-12)
    expected = predict_accuracies(SPACE, PREDICTOR, genomes)
    np.testing.assert_allclose(released._evaluate(specs), expected, atol=1e-5)
    np.testing.assert_allclose(apq_original.fitness_of_genomes(SPACE, PREDICTOR)(genomes), expected, atol=1e-5)


def test_children_come_from_their_parents_and_searching_finds_more_than_drawing():
    released = apq_original.AsReleased(SPACE, COST, PREDICTOR, SETTINGS)
    genomes = np.asarray(jax.vmap(SPACE.sample)(jax.random.split(jax.random.key(2), 400)))
    one, other = spec_for(genomes[0]), spec_for(genomes[1])
    child = None
    while child is None:
        child = released._child(one, other)
    for name in apq_original.PER_BLOCK:
        assert all(value in pair for value, *pair in zip(child[name], one[name], other[name], strict=True))
    limit = float(np.median(apq_original.prices(TABLE)(genomes)))
    fitness, price = apq_original.fitness_of_genomes(SPACE, PREDICTOR), apq_original.prices(TABLE)
    drawn = fitness(genomes[price(genomes) <= limit][:120]).max()
    assert released.run(limit, seed=0) > drawn
    assert apq_original.in_arrays(SPACE, fitness, price, limit, SETTINGS, seed=0)() > drawn
