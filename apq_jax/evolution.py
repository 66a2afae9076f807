"""Evolutionary search under hardware budgets, all generations in one compiled call (APQ, §3.3 and Algorithm 1).

It maximises predicted accuracy jointly over architecture, pruning and quantisation (APQ, Eq. 4).
APQ draws children again until one is within the budgets. Here a child over budget is repaired instead: its changes are
applied one by one to its parent, which is within the budgets, and those that stay within them are kept.

    evolution = make(space, {"latency": space.cost_table(model)})
    result = evolution.evolve(jax.tree_util.Partial(predict, params), limits=[[12.8], [6.11]], key=jax.random.key(0))
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jax.typing import ArrayLike

from apq_jax.selection import Select, fittest
from apq_jax.within_budgets import Space, Tables, cheapest, verify
from hwcost import pricing

Fitness = Callable[[jax.Array], jax.Array]
"""Fitness of genomes, int32[P, D] → float32[P]; higher is better."""


class Settings(NamedTuple):
    """Hyper-parameters of evolution, with the defaults of APQ (§4).

    Attributes:
      population: number of children per generation, half by mutation and half by crossover.
      parents: number of genomes kept per generation (top-k in APQ, Algorithm 1).
      mutation: probability that a group of a mutant is redrawn; at least one group always is. APQ redraws all decisions
        of a group, and so do half of the mutants here; in the other half each decision of the group is redrawn with
        probability 1/3, which finds fitter genomes.
      generations: number of generations after the first population.
    """

    population: int = 100
    parents: int = 25
    mutation: float = 0.1
    generations: int = 500


PAPER = Settings()
TRIES = 12  # changes tried to repair a child over budget; trying all takes 10 % longer and gains little


class Population(NamedTuple):
    """Genomes int32[N, D], their fitness float32[N] and costs float32[N, M]; unused rows have fitness −∞."""

    genomes: jax.Array
    fitness: jax.Array
    costs: jax.Array


class State(NamedTuple):
    """State of evolution between two generations.

    Attributes:
      key: PRNG key.
      ceiling: float32[M], upper limits of the costs as computed in float32.
      parents: the genomes kept so far.
    """

    key: jax.Array
    ceiling: jax.Array
    parents: Population


class Children(NamedTuple):
    """Genomes to evaluate, int32[P, D], and their costs, float32[P, M]."""

    genomes: jax.Array
    costs: jax.Array


class Result(NamedTuple):
    """The last parents for each of B sets of budgets, by descending fitness, as NumPy arrays.

    Attributes:
      genomes: int32[B, parents, D].
      fitness: float32[B, parents]; −∞ in unused rows.
      costs: float64[B, parents, M], in the tables' units.
      history: float32[B, 1 + generations], best fitness of the first population and after each generation.
    """

    genomes: np.ndarray
    fitness: np.ndarray
    costs: np.ndarray
    history: np.ndarray

    @property
    def genome(self) -> np.ndarray:
        """int32[B, D]: the fittest genome of each set, whose fitness is `fitness[:, 0]` and costs are `costs[:, 0]`."""
        return self.genomes[:, 0]


class Evolution(NamedTuple):
    """The pure functions of evolution in one space under its tables.

    Attributes:
      init: (key, ceiling float32[M], base int32[D]) → State, first Children. `base` must be within the budgets.
      ask: State → State, Children.
      tell: (State, Children, their fitness float32[P]) → State. Genomes equal in fitness and all costs are kept once.
      evolve: (fitness, limits [B, M], key) → Result, in one compiled call. All sets of budgets use the same random
        numbers, so the result of a set does not depend on the others. Another number of sets or another fitness
        function recompiles; other parameters of a `jax.tree_util.Partial(function, params)` do not. Raises
        `BudgetError`.
    """

    init: Callable[[jax.Array, jax.Array, jax.Array], tuple[State, Children]]
    ask: Callable[[State], tuple[State, Children]]
    tell: Callable[[State, Children, jax.Array], State]
    evolve: Callable[..., Result]


def _repaired(
    tables: Tables,
    group: np.ndarray,
    ceiling: jax.Array,
    *,
    parent: jax.Array,
    child: jax.Array,
    change: jax.Array,
    order: jax.Array,
    tries: int,
) -> Children:
    """Children within `ceiling`: the proposed child if it fits, else its parent with the changes that fit.

    Args:
      tables: M tables.
      group: int32[D], from 0 to G − 1.
      ceiling: float32[M].
      parent, child: int32[P, D]; parents count as within the ceiling, whatever their costs in float32.
      change: bool[P, G], which groups of the child to take.
      order: float32[P, G]; changes are tried one by one in ascending order, and each is kept if it fits.
      tries: maximum number of changes tried one by one.
    """
    # Genomes are columns here, so that each decision of the population is contiguous in memory.
    parent, child, change, order = parent.T, child.T, change.T, jnp.where(change, order, jnp.inf).T
    # Ranks by counting: sorting takes longer than the rest of a generation.
    place = jnp.where(change, (order[None] < order[:, None]).sum(axis=1), len(change))

    def with_changes(applied: jax.Array) -> jax.Array:
        return jnp.where(applied[group], child, parent)

    def price(columns: jax.Array) -> jax.Array:
        return jnp.stack([jax.vmap(functools.partial(pricing.price, t), 1)(columns) for t in tables.values()])

    def attempt(carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        step, last, kept, kept_costs = carry
        applied = kept | (place == step - 2) | ((step == 1) & change)
        costs = price(with_changes(applied))
        fits = (costs <= ceiling[:, None]).all(axis=0) | (step == 0)
        # If the whole child fits, no change has to be tried alone.
        tried = 2 + jnp.where(fits, 0, jnp.minimum(change.sum(axis=0), tries)).max()
        last = jnp.where(step == 1, tried, last)
        return step + 1, last, jnp.where(fits, applied, kept), jnp.where(fits, costs, kept_costs)

    # Steps 0 and 1 price the parent and the whole child, so that pricing is compiled only once, inside the loop.
    no_changes, no_costs = jnp.zeros(change.shape, bool), jnp.zeros((len(tables), change.shape[1]))
    start = jnp.int32(0), jnp.int32(2), no_changes, no_costs
    _, _, applied, costs = jax.lax.while_loop(lambda carry: carry[0] < carry[1], attempt, start)
    return Children(with_changes(applied).T, costs.T)


def _tell(select: Select, state: State, children: Children, fitness: jax.Array) -> State:
    fitness = jnp.where(jnp.isnan(fitness), -jnp.inf, fitness)
    candidates = jax.tree.map(
        lambda *parts: jnp.concatenate(parts), state.parents, Population(children.genomes, fitness, children.costs)
    )
    # Genomes that differ only in skipped blocks are one network: without this, copies of it would replace all parents.
    objectives = jnp.concatenate([candidates.fitness[:, None], candidates.costs], axis=1)
    earlier = np.tri(len(objectives), k=-1, dtype=bool)
    repeated = ((objectives[:, None] == objectives).all(axis=-1) & earlier).any(axis=-1)
    chosen = select(
        jnp.where(repeated, -jnp.inf, candidates.fitness),
        jnp.where(repeated[:, None], jnp.inf, candidates.costs),
        len(state.parents.fitness),
    )
    return state._replace(parents=jax.tree.map(lambda field: field[chosen], candidates))


def _evolve(
    space: Space, tables: Tables, run: Callable[..., Any], fitness: Fitness, limits: ArrayLike, key: jax.Array
) -> Result:
    """`Evolution.evolve`: base genomes, one compiled run, and the check that no cost exceeds its limit."""
    exact = np.asarray(limits, np.float64)
    if exact.ndim != 2 or exact.shape[1] != len(tables):
        raise ValueError(f"limits of shape {exact.shape}: expected sets of budgets × {', '.join(tables)}")
    base = np.stack([cheapest(space, tables, row) for row in exact])
    # Float32 rounding by half a unit of each term, each sum and the limit: 3e-6 relative for 43 terms.
    margin = np.asarray([len(table.offset) + 2 for table in tables.values()]) * 2.0**-24
    ceiling = (exact * (1 - margin)).astype(np.float32)
    fitness = fitness if isinstance(fitness, Partial) else Partial(fitness)
    population, history = jax.device_get(run(fitness, ceiling, base, key))
    best = population.fitness.max(axis=1)
    if not np.isfinite(best).all():
        raise ValueError(f"the best fitness is {best[~np.isfinite(best)][0]}: expected a fitness that is finite")
    order = np.argsort(-population.fitness, axis=1, kind="stable")
    genomes = np.take_along_axis(population.genomes, order[:, :, None], axis=1)
    costs = np.stack([verify(tables, rows, row) for rows, row in zip(genomes, exact, strict=True)])
    return Result(genomes, np.take_along_axis(population.fitness, order, axis=1), costs, history)


def make(space: Space, tables: Tables, settings: Settings = PAPER, select: Select = fittest) -> Evolution:
    """Evolution in `space` under budgets on the costs of `tables`, in the order of the limits (APQ, Algorithm 1).

    Raises:
      ValueError: `settings` has fewer children than parents.
    """
    if settings.population < settings.parents:
        raise ValueError(f"{settings.population} children: expected at least as many as parents, {settings.parents}")
    group = np.unique(space.group, return_inverse=True)[1]
    groups = int(group.max()) + 1
    mutants = settings.population // 2
    rates = np.repeat([settings.mutation, 0.5], [mutants, settings.population - mutants])[:, None]
    tell = functools.partial(_tell, select)
    repaired = functools.partial(_repaired, tables, group)

    def sample_genomes(key: jax.Array, count: int) -> jax.Array:
        return jax.vmap(space.sample)(jax.random.split(key, count))

    def init(key: jax.Array, ceiling: jax.Array, base: jax.Array) -> tuple[State, Children]:
        key, genome_key, order_key = jax.random.split(key, 3)
        proposal = sample_genomes(genome_key, settings.population)
        order = jax.random.uniform(order_key, (settings.population, groups))
        children = repaired(
            ceiling,
            parent=jnp.broadcast_to(base, proposal.shape),
            child=proposal,
            change=jnp.ones(order.shape, bool),
            order=order,
            tries=groups,
        )
        no_parents = Population(
            jnp.broadcast_to(base, (settings.parents, len(group))),
            jnp.full(settings.parents, -jnp.inf),
            jnp.full((settings.parents, len(tables)), jnp.inf),
        )
        return State(key, ceiling, no_parents), children

    def ask(state: State) -> tuple[State, Children]:
        key, genome_key, uniform_key, part_key = jax.random.split(state.key, 4)
        # One call draws all numbers: the generator's time goes into calls, not into numbers.
        uniform = jax.random.uniform(uniform_key, (settings.population, 2 * groups + 2))
        first_parent = jnp.floor(uniform[:, -1] * settings.parents).astype(jnp.int32)
        second_parent = first_parent + 1 + jnp.floor(uniform[:, -2] * (settings.parents - 1)).astype(jnp.int32)
        genomes = state.parents.genomes
        drawn = sample_genomes(genome_key, mutants)
        unchanged = jax.random.bits(part_key, drawn.shape, jnp.uint8) >= 256 // 3
        unchanged &= (jnp.arange(mutants) % 2 == 0)[:, None]
        mutated = space.made_valid(jnp.where(unchanged, genomes[first_parent[:mutants]], drawn))
        proposal = jnp.concatenate([mutated, genomes[second_parent[mutants:] % settings.parents]])
        chances = uniform[:, :groups]
        change = (chances < rates) | (chances == chances.min(axis=-1, keepdims=True))
        order = uniform[:, groups : 2 * groups]
        children = repaired(
            state.ceiling, parent=genomes[first_parent], child=proposal, change=change, order=order, tries=TRIES
        )
        return state._replace(key=key), children

    @jax.jit
    def run(fitness: Fitness, ceiling: jax.Array, base: jax.Array, key: jax.Array) -> tuple[Population, jax.Array]:
        def generation(state: State, _: None) -> tuple[State, jax.Array]:
            state, children = ask(state)
            state = tell(state, children, fitness(children.genomes))
            return state, state.parents.fitness.max()

        def run_set(ceiling: jax.Array, base: jax.Array) -> tuple[Population, jax.Array]:
            state, children = init(key, ceiling, base)
            state = tell(state, children, fitness(children.genomes))
            first = state.parents.fitness.max()
            state, history = jax.lax.scan(generation, state, None, settings.generations)
            return state.parents, jnp.concatenate([first[None], history])

        return jax.vmap(run_set)(ceiling, base)

    return Evolution(init, ask, tell, functools.partial(_evolve, space, tables, run))
