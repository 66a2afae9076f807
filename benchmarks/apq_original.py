"""The search algorithm of APQ's release, rewritten without PyTorch as a reference for benchmarks/apq_search.py.

It redraws genomes, mutants and children until they are within the budget. A mutant redraws each block as a whole with
probability 0.1. Crossover takes each block from either parent, and depths follow from the blocks that are present.

There are two versions. `AsReleased` works like the release: one child after the other, on deeply copied lists, with
each layer's cost looked up by a string of its sizes. `in_arrays` is the same search on our genomes in NumPy, all
children of a generation at once. Unlike the release, both let the predictor see the bits, keep the whole first
population and let all children compete, which takes no more time and can only help.
"""

import copy
import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from apq_jax.architecture_space import BIT_DECISIONS, ArchitectureSpace, Block
from apq_jax.evolution import Settings
from apq_jax.predictor import Predictor
from aqt_like.formats import format_pair
from hwcost.cost_model import CostModel
from hwcost.layer_variants import resized
from hwcost.pricing import CostTable
from hwcost.workload import LayerSpec

Price = Callable[[np.ndarray], np.ndarray]
Fitness = Callable[[np.ndarray], np.ndarray]
Spec = dict[str, list[Any]]  # `depth` of each stage; `kernel`, `channels` and bits of each block
PER_BLOCK = ("kernel", "channels", *BIT_DECISIONS)


def numpy_predictor(predictor: Predictor) -> Fitness:
    """A predictor in NumPy: features, float32[P, F] → standardised accuracies, float32[P]."""
    *hidden, last = [(np.asarray(layer.kernel), np.asarray(layer.bias)) for layer in predictor.layers]

    def run(x: np.ndarray) -> np.ndarray:
        for kernel, bias in hidden:
            x = np.maximum(x @ kernel + bias, 0)
        return (x @ last[0] + last[1])[:, 0]

    return run


def layers_of(space: ArchitectureSpace, block: Block, kernel: int, channels: int) -> Iterator[LayerSpec]:
    """Expansion, depthwise convolution and projection of a block."""
    shapes = {
        "expand": (block.in_channels, channels, 0),
        "depthwise": (channels, channels, kernel),
        "project": (channels, block.out_channels, 0),
    }
    for layer in space.layers:
        name, _, part = layer.path.partition("/")
        if name == block.name:
            ins, outs, size = shapes[part.removesuffix("/conv")]
            yield resized(layer, in_channels=ins, out_channels=outs, kernel=size)


class AsReleased:
    """The search on lists and strings, as in the release."""

    def __init__(self, space: ArchitectureSpace, model: CostModel, predictor: Predictor, settings: Settings) -> None:
        self._space, self._settings, self._predict = space, settings, numpy_predictor(predictor)
        self._options: list[dict[str, tuple[int, ...]]] = [
            {"kernel": space.kernels, "channels": block.channels} | dict.fromkeys(BIT_DECISIONS, space.bits)
            for block in space.blocks
        ]
        self._starts = [next(i for i, b in enumerate(space.blocks) if b.stage == s) for s in range(len(space.stages))]
        self._table = dict(self._layer_costs(model))
        widest = format_pair(f"int{space.bits[-1]}", f"int{space.bits[-1]}")
        self._fixed = sum(float(model.layer_costs(layer, [widest])[0]) for layer in space.fixed_layers)
        places = itertools.count()
        self._places: list[dict[str, dict[int, int]]] = [{} for _ in space.blocks]
        for names in (
            ("kernel",),
            ("channels",),
            BIT_DECISIONS,
        ):  # the order of our features, so that predictors can be shared
            for block, block_places in zip(self._options, self._places, strict=True):
                for name in names:
                    block_places[name] = {option: next(places) for option in block[name]}
        self._features = next(places)

    def _layer_costs(self, model: CostModel) -> Any:
        """Entries of the lookup table: the key of a layer at some bits, and its cost."""
        bits = list(itertools.product(self._space.bits, repeat=2))
        pairs = [format_pair(f"int{w}", f"int{a}") for w, a in bits]
        for block in self._space.blocks:
            for kernel, channels in itertools.product(self._space.kernels, block.channels):
                for layer in layers_of(self._space, block, kernel, channels):
                    for (w, a), cost in zip(bits, model.layer_costs(layer, pairs), strict=True):
                        yield _text(layer, w, a), float(cost)

    def _random(self) -> Spec:
        return {
            "depth": [random.randint(stage.shallowest, stage.deepest) for stage in self._space.stages],
            **{name: [random.choice(block[name]) for block in self._options] for name in PER_BLOCK},
        }

    def _is_valid(self, spec: Spec) -> bool:
        kernels = zip(spec["kernel"], spec["depthwise_inputs"], strict=True)
        return not any(pair == self._space.excluded for pair in kernels)

    def _cost(self, spec: Spec) -> float:
        total = self._fixed
        for number, block in enumerate(self._space.blocks):
            if block.place >= spec["depth"][block.stage]:
                continue
            expand, depthwise, project = _layers(block, spec["kernel"][number], spec["channels"][number])
            pointwise = spec["pointwise_weights"][number], spec["pointwise_inputs"][number]
            total += self._table[expand % pointwise]
            total += self._table[depthwise % (spec["depthwise_weights"][number], spec["depthwise_inputs"][number])]
            total += self._table[project % pointwise]
        return total

    def _until_it_fits(self, draw: Callable[[], Spec | None], limit: float) -> Spec:
        while True:
            spec = draw()
            if spec is not None and self._is_valid(spec) and self._cost(spec) <= limit:
                return spec

    def _mutant(self, parent: Spec) -> Spec:
        spec = copy.deepcopy(parent)
        for number, block in enumerate(self._options):
            if random.random() < self._settings.mutation:
                for name in PER_BLOCK:
                    spec[name][number] = random.choice(block[name])
        return spec

    def _child(self, mother: Spec, father: Spec) -> Spec | None:
        """The crossover of two parents, or None if the blocks present in a stage are not its first ones."""
        spec, present = copy.deepcopy(mother), []
        for number, block in enumerate(self._space.blocks):
            parent = copy.deepcopy(mother) if random.random() < 0.5 else copy.deepcopy(father)
            for name in PER_BLOCK:
                spec[name][number] = parent[name][number]
            present.append(block.place < parent["depth"][block.stage])
        for stage, start in enumerate(self._starts):
            end = self._starts[stage + 1] if stage + 1 < len(self._starts) else len(present)
            stage_present = present[start:end]
            if stage_present != sorted(stage_present, reverse=True):
                return None
            spec["depth"][stage] = sum(stage_present)
        return spec

    def _evaluate(self, specs: list[Spec]) -> list[float]:
        x = np.zeros((len(specs), self._features), np.float32)
        for row, spec in zip(x, specs, strict=True):
            for number, block in enumerate(self._space.blocks):
                if block.place < spec["depth"][block.stage]:
                    for name, options in self._places[number].items():
                        row[options[spec[name][number]]] = 1
        return self._predict(x).tolist()

    def run(self, limit: float, seed: int) -> float:
        """The best fitness found within a limit, which is in the unit of the cost model."""
        random.seed(seed)
        size = self._settings.population
        specs = [self._until_it_fits(self._random, limit) for _ in range(size)]
        population = list(zip(self._evaluate(specs), specs, strict=True))
        for _ in range(self._settings.generations):
            parents = sorted(population, key=lambda pair: pair[0], reverse=True)[: self._settings.parents]

            def mutant(parents: list[tuple[float, Spec]] = parents) -> Spec:
                return self._mutant(random.choice(parents)[1])

            def child(parents: list[tuple[float, Spec]] = parents) -> Spec | None:
                return self._child(random.choice(parents)[1], random.choice(parents)[1])

            specs = [self._until_it_fits(mutant, limit) for _ in range(size // 2)]
            specs += [self._until_it_fits(child, limit) for _ in range(size - size // 2)]
            population = parents + list(zip(self._evaluate(specs), specs, strict=True))
        return max(fitness for fitness, _ in population)


def _layers(block: Block, kernel: int, channels: int) -> tuple[str, str, str]:
    """Keys of the layers of a block in the lookup table, with `%d` in place of the bits."""
    size, padding = block.size // block.stride, kernel // 2
    return (
        f"({block.in_channels}, {channels}, {block.size}, 1, 1, 0, 1)-W%dA%d",
        f"({channels}, {channels}, {block.size}, {kernel}, {block.stride}, {padding}, {channels})-W%dA%d",
        f"({channels}, {block.out_channels}, {size}, 1, 1, 0, 1)-W%dA%d",
    )


def _text(layer: LayerSpec, weight_bits: int, input_bits: int) -> str:
    kernel, sizes = layer.kernel[0], (layer.in_channels, layer.out_channels, layer.input_size[0])
    return f"{(*sizes, kernel, layer.stride[0], kernel // 2, layer.groups)}-W{weight_bits}A{input_bits}"


def prices(table: CostTable) -> Price:
    """The function from genomes, int32[P, D], to their costs, float64[P], in NumPy."""

    def price(genomes: np.ndarray) -> np.ndarray:
        total = np.zeros(len(genomes))
        for offset, decision, stride in zip(table.offset, table.decision, table.stride, strict=True):
            used = np.flatnonzero(stride)
            total += table.flat[offset + genomes[:, decision[used]] @ stride[used]]
        return total

    return price


def fitness_of_genomes(space: ArchitectureSpace, predictor: Predictor) -> Fitness:
    """The function from genomes, int32[P, D], to standardised predicted accuracies, float32[P], in NumPy."""
    decision, option, block = space._features
    run = numpy_predictor(predictor)
    stages = np.asarray([b.stage for b in space.blocks])
    columns = {
        number: space.search_space.index(f"stage{number + 1}.depth")
        for number, stage in enumerate(space.stages)
        if stage.deepest > stage.shallowest
    }
    shallowest = np.asarray([space.stages[stage].shallowest for stage in stages])
    place = np.asarray([b.place for b in space.blocks])

    def fitness(genomes: np.ndarray) -> np.ndarray:
        zero = np.zeros(len(genomes), np.int32)
        depth = np.stack([genomes[:, columns[s]] if s in columns else zero for s in stages], axis=1) + shallowest
        active = place < depth
        return run(((genomes[:, decision] == option) & active[:, block]).astype(np.float32))

    return fitness


def sampler(space: ArchitectureSpace, seed: int) -> Callable[[int], np.ndarray]:
    """The function from a count P to random valid genomes, int32[P, D], drawn in large chunks to save time."""
    chunk = 4096
    draw = jax.jit(lambda key: jax.vmap(space.sample)(jax.random.split(key, chunk)))
    drawn, place = np.empty((0, len(space.search_space)), np.int32), 0
    keys = itertools.count()

    def sample(count: int) -> np.ndarray:
        nonlocal drawn, place
        while len(drawn) - place < count:
            more = np.asarray(draw(jax.random.fold_in(jax.random.key(seed), next(keys))))
            drawn, place = np.concatenate([drawn[place:], more]), 0
        place += count
        return drawn[place - count : place]

    return sample


def drawn_until_feasible(draw: Callable[[int], np.ndarray], price: Price, limit: float, count: int) -> np.ndarray:
    """Genomes within a limit, int32[count, D]; those above it are redrawn."""
    feasible = np.empty((0, draw(1).shape[1]), np.int32)
    while len(feasible) < count:
        genomes = draw(count - len(feasible))
        feasible = np.concatenate([feasible, genomes[price(genomes) <= limit]])
    return feasible


def in_arrays(
    space: ArchitectureSpace, fitness: Fitness, price: Price, limit: float, settings: Settings, seed: int
) -> Callable[[], float]:
    """The search in NumPy, as a function that runs it and returns the best fitness."""
    rng, sample = np.random.default_rng(seed), sampler(space, seed)
    group = space.group

    def mutants(count: int) -> np.ndarray:
        parent = parents[rng.integers(len(parents), size=count)]
        change = rng.random((count, int(group.max()) + 1)) < settings.mutation
        return np.where(change[:, group], sample(count), parent)

    def crossed(count: int) -> np.ndarray:
        mothers, fathers = parents[rng.integers(len(parents), size=(2, count))]
        return np.where((rng.random((count, int(group.max()) + 1)) < 0.5)[:, group], mothers, fathers)

    parents = np.empty((0, len(group)), np.int32)

    def run() -> float:
        nonlocal parents
        population = drawn_until_feasible(sample, price, limit, settings.population)
        values = fitness(population)
        for _ in range(settings.generations):
            best = np.argsort(-values)[: settings.parents]
            parents, kept = population[best], values[best]
            half = settings.population // 2
            children = np.concatenate(
                [
                    drawn_until_feasible(mutants, price, limit, half),
                    drawn_until_feasible(crossed, price, limit, settings.population - half),
                ]
            )
            population, values = np.concatenate([parents, children]), np.concatenate([kept, fitness(children)])
        return float(values.max())

    return run
