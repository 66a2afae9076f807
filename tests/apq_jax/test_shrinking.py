import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from apq_jax import architectures, shrinking
from apq_jax.architecture_space import Stage

SPACE = dataclasses.replace(architectures.find("digits"), stages=(Stage(8, 1, 1, 2),))  # two blocks
FULL = SPACE.family.largest
SHARES = {"full": 1, "kernel": 1, "channels": 1, "depth": 1}


def cross_entropy(logits, batch):
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()


OBJECTIVE = shrinking.Objective(
    loss=cross_entropy,
    distillation_loss=lambda logits, batch, teacher: (
        cross_entropy(logits, batch) + jnp.mean(jnp.square(logits - teacher))
    ),
    quality=lambda logits, batch: jnp.mean(jnp.argmax(logits, -1) == batch["label"]),
)
BATCH = {"input": jax.random.normal(jax.random.key(5), (8, 8, 8, 1)), "label": jnp.arange(8) % 3}


def test_stages_let_go_of_one_kind_of_decision_after_the_other():
    elastic = shrinking.elastic_decisions(SPACE)
    kinds = np.asarray([d.name.rpartition(".")[2] for d in SPACE.search_space.decisions])
    assert [sorted(set(kinds[row])) for row in elastic] == [
        [],
        ["kernel"],
        ["channels", "kernel"],
        ["channels", "depth", "kernel"],
    ]
    assert list(shrinking.stage_starts(100, {**SHARES, "full": 2}).values()) == [0, 40, 60, 80]
    for shares in ({**SHARES, "full": 0}, {**SHARES, "width": 1}, {**SHARES, "depth": -1}):
        with pytest.raises(ValueError, match="expected a share above 0 for full"):
            shrinking.stage_starts(100, shares)


def test_a_sandwich_has_the_largest_the_smallest_and_a_random_network():
    elastic = jnp.asarray(shrinking.elastic_decisions(SPACE)[2])
    largest, smallest, random = np.asarray(shrinking.sandwich(SPACE, jax.random.key(0), elastic))
    np.testing.assert_array_equal(largest, SPACE.largest)
    fixed = ~np.asarray(elastic)
    np.testing.assert_array_equal(smallest[fixed], SPACE.largest[fixed])
    np.testing.assert_array_equal(smallest[~fixed], 0)
    np.testing.assert_array_equal(random[fixed], SPACE.largest[fixed])
    np.testing.assert_array_equal(random, shrinking.one_random(SPACE, jax.random.key(0), elastic)[0])


def test_one_compiled_step_goes_through_all_stages():
    starts = shrinking.stage_starts(8, SHARES)
    optimizer = optax.sgd(0.05, momentum=0.9)
    step = jax.jit(
        shrinking.make_step(
            SPACE, optimizer=optimizer, objective=OBJECTIVE, sampling=shrinking.one_random, starts=starts
        )
    )
    changes = shrinking.before_steps(SPACE, starts)
    assert sorted(changes) == [2, 4]
    state = shrinking.init_state(SPACE, optimizer, jax.random.key(0))
    start, stages = state, []
    for number in range(8):
        if number in changes:
            state = changes[number](state)
        if number == 2:
            teacher = state.teacher
            np.testing.assert_array_equal(
                teacher["stem"]["conv"]["kernel"], state.params.params["stem"]["conv"]["kernel"]
            )
        state, metrics = step(state, BATCH)
        stages.append(int(metrics["stage"]))
        moved = (
            state.params.kernels["stage1_block1.kernel"]["5to3"] != start.params.kernels["stage1_block1.kernel"]["5to3"]
        )
        if number < 2:
            assert not bool(moved.any())  # nothing but the largest network is trained
    assert stages == [0, 0, 1, 1, 2, 2, 3, 3]
    assert step._cache_size() == 1
    jax.tree.map(np.testing.assert_array_equal, state.teacher, teacher)
    assert np.isfinite(float(metrics["loss"]))
    assert any(
        bool((state.params.kernels[f"{block.name}.kernel"]["5to3"] != jnp.eye(9)).any()) for block in SPACE.blocks
    )
