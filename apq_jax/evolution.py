"""Evolution of genomes within hardware budgets, from first to last generation in one compiled call (paper, §3.3).

The original draws children again and again until one is within the budget. Here none is drawn in vain: where a child
costs too much, its changes are made one by one to its parent, which is within the budgets, and those that fit stay.

    evolution = make(space, {"latency": space.cost_table(model)})
    result = evolution.evolve(jax.tree_util.Partial(predict, params), limits=[[12.8], [6.11]], key=jax.random.key(0))
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jax.typing import ArrayLike

from apq_jax.selection import Select, fittest
from hwcost import pricing
from hwcost.pricing import CostTable
from hwcost.space import SearchSpace

Fitness = Callable[[jax.Array], jax.Array]
"""int32[P, D] → float32[P], the higher the better."""

Tables = Mapping[str, CostTable]


class BudgetError(ValueError):
    """No genome is within the budgets."""


class Space(Protocol):
    """What evolution has to know of a space, such as `apq_jax.architectures.ArchitectureSpace`."""

    @property
    def search_space(self) -> SearchSpace:
        """The D decisions."""
        ...

    @property
    def group(self) -> np.ndarray:
        """int32[D]: decisions that change together share a number; options of different groups always go together."""
        ...

    @property
    def smallest(self) -> np.ndarray:
        """int32[D]: some valid genome, best a cheap one."""
        ...

    def is_valid(self, genome: Any) -> Any:
        """bool[...] of int32[..., D], in NumPy for NumPy."""
        ...

    def sample(self, key: jax.Array) -> jax.Array:
        """A random valid genome, int32[D]."""
        ...

    def made_valid(self, genome: Any) -> jax.Array:
        """A valid genome, int32[..., D], for one whose decisions come from two valid ones."""
        ...


class Settings(NamedTuple):
    """How evolution goes; defaults as in the paper (§4).

    Attributes:
      population: children of a generation. Half of them are mutants, half come from two parents each.
      parents: how many genomes are kept.
      mutation: chance that a group of a mutant is drawn anew; one is in any case. The paper draws all decisions of a
        group anew, and so do half of the mutants here; in the others each of them changes with a chance of a third,
        which finds fitter genomes.
      generations: after the first population.
    """

    population: int = 100
    parents: int = 25
    mutation: float = 0.1
    generations: int = 500


PAPER = Settings()
TRIES = 12  # of a child over budget, change by change: all of them take a tenth longer and find hardly more


class Population(NamedTuple):
    """Genomes int32[N, D], their fitness float32[N], their costs float32[N, M].

    Where fewer genomes than wanted have been found, a fitness of −∞ marks the places left over.
    """

    genomes: jax.Array
    fitness: jax.Array
    costs: jax.Array


class State(NamedTuple):
    """Between two generations.

    Attributes:
      key: PRNG key.
      ceiling: float32[M], what genomes may cost at most in float32.
      parents: the genomes kept.
    """

    key: jax.Array
    ceiling: jax.Array
    parents: Population


class Children(NamedTuple):
    """Genomes to evaluate, int32[P, D], and their costs, float32[P, M]."""

    genomes: jax.Array
    costs: jax.Array


class Result(NamedTuple):
    """The genomes that evolution kept in the end, by descending fitness, for each of B sets of budgets; in NumPy.

    Attributes:
      genomes: int32[B, parents, D].
      fitness: float32[B, parents]; −∞ in places left over.
      costs: float64[B, parents, M], in the tables' units.
      history: float32[B, 1 + generations], the best fitness of the first population and after each generation.
    """

    genomes: np.ndarray
    fitness: np.ndarray
    costs: np.ndarray
    history: np.ndarray

    @property
    def genome(self) -> np.ndarray:
        """int32[B, D]: the fittest of each set; `fitness[:, 0]` and `costs[:, 0]` are its."""
        return self.genomes[:, 0]


class Evolution(NamedTuple):
    """Pure functions, for one space and its tables.

    Attributes:
      init: (key, ceiling float32[M], base int32[D]) → State, first Children. `base` has to be within the budgets.
      ask: State → State, Children.
      tell: (State, Children, their fitness float32[P]) → State. Of genomes alike in fitness and all costs one is kept.
      evolve: (fitness, limits [B, M], key) → Result, all of it compiled. The sets of budgets share their random
        numbers, so that each is searched as if alone. It compiles anew for another number of sets and for another
        function; a `jax.tree_util.Partial(function, params)` may come with other parameters. Raises `BudgetError`.
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
    """The child where it costs no more than `ceiling`, else the parent with those of `tries` changes that fit.

    Args:
      tables: M tables.
      group: int32[D], from 0 to G − 1.
      ceiling: float32[M].
      parent, child: int32[P, D]; parents fit, whatever float32 says.
      change: bool[P, G], which groups of the child to take.
      order: float32[P, G]; changes are made in ascending order, and each stays if it fits.
      tries: how many changes are tried one by one at most.
    """
    # Genomes stand in columns here, so that each decision of the population is one piece of memory.
    parent, child, change, order = parent.T, child.T, change.T, jnp.where(change, order, jnp.inf).T
    # By counting: sorting costs more than all the rest of a generation.
    place = jnp.where(change, (order[None] < order[:, None]).sum(axis=1), len(change))

    def bred(made: jax.Array) -> jax.Array:
        return jnp.where(made[group], child, parent)

    def price(columns: jax.Array) -> jax.Array:
        return jnp.stack([jax.vmap(functools.partial(pricing.price, t), 1)(columns) for t in tables.values()])

    def attempt(carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        step, last, kept, kept_costs = carry
        made = kept | (place == step - 2) | ((step == 1) & change)
        costs = price(bred(made))
        fits = (costs <= ceiling[:, None]).all(axis=0) | (step == 0)
        # Where the whole child fits, nothing is left to try.
        tried = 2 + jnp.where(fits, 0, jnp.minimum(change.sum(axis=0), tries)).max()
        last = jnp.where(step == 1, tried, last)
        return step + 1, last, jnp.where(fits, made, kept), jnp.where(fits, costs, kept_costs)

    # Steps 0 and 1 are for the parent and the whole child: pricing is compiled once, inside the loop.
    nothing = jnp.zeros(change.shape, bool), jnp.zeros((len(tables), change.shape[1]))
    start = jnp.int32(0), jnp.int32(2), *nothing
    _, _, made, costs = jax.lax.while_loop(lambda carry: carry[0] < carry[1], attempt, start)
    return Children(bred(made).T, costs.T)


def cheapest(space: Space, tables: Tables, limits: ArrayLike) -> np.ndarray:
    """The genome that stays furthest below its budgets, on the host in float64: least `max_m cost_m / limit_m`.

    Group by group the best of all valid options is taken, again and again until nothing improves. With one budget that
    is the optimum; with several it need not be, and may miss the rare genome that is within all of them.

    Args:
      space: the space.
      tables: M tables by name.
      limits: float[M], in the tables' units.

    Returns:
      int32[D].

    Raises:
      BudgetError: nothing is within the budgets; says which, and what can be reached.
    """
    limits = np.asarray(limits, np.float64)
    choices, genome = _choices(space), space.smallest
    for (name, table), limit in zip(tables.items(), limits, strict=True):
        genome = _descended(space.smallest, choices, [table], np.ones(1))
        lowest = pricing.price_exactly(table, genome)
        if not lowest <= limit:
            highest = pricing.price_exactly(table, _descended(space.smallest, choices, [table], -np.ones(1)))
            raise BudgetError(f"{name}: no genome is within {limit:g}, reachable is {lowest:g} to {highest:g}")
    if len(tables) > 1:
        genome = _descended(space.smallest, choices, list(tables.values()), 1 / np.maximum(limits, 1e-300))
    verify(tables, genome, limits)
    return genome


def verify(tables: Tables, genomes: np.ndarray, limits: ArrayLike) -> np.ndarray:
    """Costs of genomes int32[..., D] on the host, float64[..., M].

    Raises:
      BudgetError: a cost above its limit.
    """
    rows = genomes.reshape(-1, genomes.shape[-1])
    costs = np.asarray([[pricing.price_exactly(table, row) for table in tables.values()] for row in rows])
    for name, found, limit in zip(tables, costs.max(axis=0), np.asarray(limits, np.float64), strict=True):
        if not found <= limit:
            others = " together with the other budgets" if len(tables) > 1 else ""
            raise BudgetError(f"{name}: no genome was found within {limit:g}{others}, the nearest has {found:g}")
    return costs.reshape(*genomes.shape[:-1], len(tables))


def _choices(space: Space) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each group its decisions, int32[k], and all that they may be together, int32[C, k]."""
    found = []
    for number in np.unique(space.group):
        columns = np.flatnonzero(space.group == number)
        options = np.indices(tuple(space.search_space.option_counts[columns])).reshape(len(columns), -1).T
        genomes = np.repeat(np.asarray(space.smallest)[None], len(options), axis=0)
        genomes[:, columns] = options
        found.append((columns, genomes[np.asarray(space.is_valid(genomes))][:, columns]))
    return found


def _descended(
    genome: np.ndarray, choices: list[tuple[np.ndarray, np.ndarray]], tables: list[CostTable], weights: np.ndarray
) -> np.ndarray:
    """From `genome` down to the least of the largest weighted cost, or of their sum where that is equal."""
    genome, least, before = np.array(genome), (np.inf, np.inf), None
    while least != before:
        before = least
        for columns, options in choices:
            costs = np.stack([_costs(table, genome, columns, options) for table in tables], axis=-1) * weights
            largest, total = costs.max(axis=-1), costs.sum(axis=-1)
            best = np.lexsort((total, largest))[0]
            if (largest[best], total[best]) < least:
                genome[columns], least = options[best], (largest[best], total[best])
    return genome


def _costs(table: CostTable, genome: np.ndarray, columns: np.ndarray, options: np.ndarray) -> np.ndarray:
    """Costs of a genome with each of `options`, int32[C, k], at `columns`: float64[C]."""
    add = np.maximum if table.peak else np.add
    touched = (np.isin(table.decision, columns) & (table.stride != 0)).any(axis=1)
    rest = pricing.price_layers(table, genome)[~touched]
    total = np.full(len(options), add.reduce(rest, initial=0.0))
    for row in np.flatnonzero(touched):
        place = np.full(len(options), table.offset[row])
        for decision, stride in zip(table.decision[row], table.stride[row], strict=True):
            column = np.flatnonzero(columns == decision)
            place += stride * (options[:, column[0]] if len(column) else genome[decision])
        total = add(total, table.flat[place])
    return total


def _tell(select: Select, state: State, children: Children, fitness: jax.Array) -> State:
    fitness = jnp.where(jnp.isnan(fitness), -jnp.inf, fitness)
    everyone = jax.tree.map(
        lambda *parts: jnp.concatenate(parts), state.parents, Population(children.genomes, fitness, children.costs)
    )
    # Genomes that differ in skipped blocks only are one network; were all kept, the parents would soon be one network.
    seen = jnp.concatenate([everyone.fitness[:, None], everyone.costs], axis=1)
    earlier = np.tri(len(seen), k=-1, dtype=bool)
    repeated = ((seen[:, None] == seen).all(axis=-1) & earlier).any(axis=-1)
    chosen = select(
        jnp.where(repeated, -jnp.inf, everyone.fitness),
        jnp.where(repeated[:, None], jnp.inf, everyone.costs),
        len(state.parents.fitness),
    )
    return state._replace(parents=jax.tree.map(lambda field: field[chosen], everyone))


def _evolve(
    space: Space, tables: Tables, run: Callable[..., Any], fitness: Fitness, limits: ArrayLike, key: jax.Array
) -> Result:
    """`Evolution.evolve`: bases, one compiled run, and the check that nothing exceeds a limit."""
    exact = np.asarray(limits, np.float64)
    if exact.ndim != 2 or exact.shape[1] != len(tables):
        raise ValueError(f"limits of shape {exact.shape}: expected sets of budgets × {', '.join(tables)}")
    base = np.stack([cheapest(space, tables, row) for row in exact])
    # Half a unit of float32 may be lost by a value, by each sum and by the limit: 3e-6 for 43 terms.
    margin = np.asarray([len(table.offset) + 2 for table in tables.values()]) * 2.0**-24
    ceiling = (exact * (1 - margin)).astype(np.float32)
    fitness = fitness if isinstance(fitness, Partial) else Partial(fitness)
    found, history = jax.device_get(run(fitness, ceiling, base, key))
    order = np.argsort(-found.fitness, axis=1, kind="stable")
    genomes = np.take_along_axis(found.genomes, order[:, :, None], axis=1)
    costs = np.stack([verify(tables, rows, row) for rows, row in zip(genomes, exact, strict=True)])
    return Result(genomes, np.take_along_axis(found.fitness, order, axis=1), costs, history)


def make(space: Space, tables: Tables, settings: Settings = PAPER, select: Select = fittest) -> Evolution:
    """Evolution in `space` under budgets for `tables`, whose order is that of the limits (Algorithm 1).

    Raises:
      ValueError: fewer children than parents.
    """
    if settings.population < settings.parents:
        raise ValueError(f"{settings.population} children: expected at least as many as parents, {settings.parents}")
    group = np.unique(space.group, return_inverse=True)[1]
    groups = int(group.max()) + 1
    mutants = settings.population // 2
    rates = np.repeat([settings.mutation, 0.5], [mutants, settings.population - mutants])[:, None]
    tell = functools.partial(_tell, select)
    repaired = functools.partial(_repaired, tables, group)

    def fresh(key: jax.Array, count: int) -> jax.Array:
        return jax.vmap(space.sample)(jax.random.split(key, count))

    def init(key: jax.Array, ceiling: jax.Array, base: jax.Array) -> tuple[State, Children]:
        key, genome_key, order_key = jax.random.split(key, 3)
        proposal = fresh(genome_key, settings.population)
        order = jax.random.uniform(order_key, (settings.population, groups))
        children = repaired(
            ceiling,
            parent=jnp.broadcast_to(base, proposal.shape),
            child=proposal,
            change=jnp.ones(order.shape, bool),
            order=order,
            tries=groups,
        )
        nobody = Population(
            jnp.broadcast_to(base, (settings.parents, len(group))),
            jnp.full(settings.parents, -jnp.inf),
            jnp.full((settings.parents, len(tables)), jnp.inf),
        )
        return State(key, ceiling, nobody), children

    def ask(state: State) -> tuple[State, Children]:
        key, genome_key, uniform_key, part_key = jax.random.split(state.key, 4)
        # The generator is slow for its calls rather than for its numbers: one call for all.
        uniform = jax.random.uniform(uniform_key, (settings.population, 2 * groups + 2))
        one = jnp.floor(uniform[:, -1] * settings.parents).astype(jnp.int32)
        other = one + 1 + jnp.floor(uniform[:, -2] * (settings.parents - 1)).astype(jnp.int32)
        genomes = state.parents.genomes
        drawn = fresh(genome_key, mutants)
        in_part = jax.random.bits(part_key, drawn.shape, jnp.uint8) >= 256 // 3
        in_part &= (jnp.arange(mutants) % 2 == 0)[:, None]
        mutated = space.made_valid(jnp.where(in_part, genomes[one[:mutants]], drawn))
        proposal = jnp.concatenate([mutated, genomes[other[mutants:] % settings.parents]])
        chances = uniform[:, :groups]
        change = (chances < rates) | (chances == chances.min(axis=-1, keepdims=True))
        order = uniform[:, groups : 2 * groups]
        children = repaired(state.ceiling, parent=genomes[one], child=proposal, change=change, order=order, tries=TRIES)
        return state._replace(key=key), children

    @jax.jit
    def run(fitness: Fitness, ceiling: jax.Array, base: jax.Array, key: jax.Array) -> tuple[Population, jax.Array]:
        def generation(state: State, _: None) -> tuple[State, jax.Array]:
            state, children = ask(state)
            state = tell(state, children, fitness(children.genomes))
            return state, state.parents.fitness.max()

        def alone(ceiling: jax.Array, base: jax.Array) -> tuple[Population, jax.Array]:
            state, children = init(key, ceiling, base)
            state = tell(state, children, fitness(children.genomes))
            first = state.parents.fitness.max()
            state, history = jax.lax.scan(generation, state, None, settings.generations)
            return state.parents, jnp.concatenate([first[None], history])

        return jax.vmap(alone)(ceiling, base)

    return Evolution(init, ask, tell, functools.partial(_evolve, space, tables, run))
