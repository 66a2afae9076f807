"""Each controller by its contract, without a network, and a search for two targets from end to end."""

import dataclasses
import functools
import json
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aqt_like.formats import format_space
from configs import common
from fliqs_jax import fisher
from fliqs_jax.controller import Controller, Observation
from fliqs_jax.search import make_search_step
from hwcost import analytic, pricing, workload
from hwcost.format_plan import format_plan
from launch.reports import fliqs_page, recorded_runs
from launch.training import finished, loop
from launch.training.controllers import CONTROLLERS, make_controller
from launch.training.experiment import prepare_experiment
from tests import tiny_network
from tests.launch.conftest import make_tiny_config, run_in
from tests.launch.training.test_runs import StopAfter, final_digest, summary_of

TOTAL = 50


def always_cheap(config, plan, budgets, total_steps):
    """A third controller, which prefers the first option of each decision."""
    del config, budgets, total_steps
    shape = plan.format_of_option.shape
    scores = -jnp.broadcast_to(jnp.arange(shape[1], dtype=jnp.float32), shape)
    return Controller(
        init=lambda: jnp.zeros((), jnp.int32),
        scores=lambda state, step: scores,
        learn=lambda state, seen: (state + 1, {}),
        within_budget=True,
        draws=0,
    )


def searched_by_nobody(*_):
    return None


OWN = f"{__name__}:always_cheap"


@functools.cache
def searched():
    """The layers of a tiny network, of which one is pinned, and a budget."""
    layers = workload.trace(tiny_network.make_network(10), (8, 8, 1), train=False)
    plan = format_plan(layers, format_space("int_s"), ("classifier: int8",))
    table = analytic.BIT_OPERATIONS.table(plan)
    return plan, (pricing.Budget(table, 1.3 * table_minimum(plan, table)),)


def table_minimum(plan, table):
    return pricing.reachable_interval(table, plan.space)[0]


def observation(plan, controller, step, key):
    """What a step may tell, at random."""
    genomes = jax.random.randint(key, (controller.draws, len(plan.space)), 0, jnp.asarray(plan.space.option_counts))
    return Observation(
        step=step,
        key=key,
        genomes=genomes,
        logits=jnp.where(plan.space.exists, jax.random.normal(key, plan.space.exists.shape), -jnp.inf),
        qualities=jax.random.uniform(key, (controller.draws,)),
        relative_costs=1 + jax.random.uniform(key, (controller.draws,)),
        losses=jax.random.exponential(key, plan.format_of_option.shape),
    )


@pytest.mark.parametrize(
    ("name", "within_budget"), [*((name, False) for name in (*CONTROLLERS, OWN)), ("reinforce", True)]
)
def test_controllers_keep_their_contract_under_jit_vmap_and_scan(name, within_budget):
    plan, budgets = searched()
    config = common.get_config()
    config.policy, config.controller.reinforce.within_budget = name, within_budget
    controller = make_controller(config, plan, budgets, TOTAL)

    def step(state, number, key):
        seen = observation(plan, controller, number, jax.random.fold_in(key, number))
        state, metrics = controller.learn(state, seen)
        return state, (controller.scores(state, number + 1), metrics)

    def run(key):
        return jax.lax.scan(lambda state, n: step(state, n, key), controller.init(), jnp.arange(TOTAL))

    keys = jax.random.split(jax.random.key(0), 3)
    one, (scores, metrics) = jax.jit(run)(keys[1])
    several, _ = jax.jit(jax.vmap(run))(keys)
    chex.assert_trees_all_close(jax.tree.map(lambda leaf: leaf[1], several), one, rtol=1e-4, atol=1e-6)
    chex.clear_trace_counter()
    once = jax.jit(chex.assert_max_traces(step, n=1))
    state = controller.init()
    for number in range(TOTAL):
        state, _ = once(state, jnp.asarray(number), keys[1])
    chex.assert_trees_all_close(state, one, rtol=1e-4, atol=1e-6)
    chex.assert_trees_all_equal_shapes_and_dtypes(controller.init(), one)
    assert scores.shape == (TOTAL, *plan.format_of_option.shape)
    assert scores.dtype == jnp.float32
    assert np.isfinite(scores).all()
    assert all(value.shape == (TOTAL,) and np.isfinite(value).all() for value in metrics.values())
    # Nothing that is donated is shared.
    first, second = jax.tree.leaves(controller.init()), jax.tree.leaves(controller.init())
    assert all(a.unsafe_buffer_pointer() != b.unsafe_buffer_pointer() for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"scores": lambda state, step: jnp.zeros((2, 2))}, r"scores of shape \(2, 2\), expected \(4, 3\)"),
        ({"learn": lambda state, seen: (jnp.zeros(2), {})}, "learns a state of another structure, shape or type"),
    ],
)
def test_a_controller_that_breaks_its_contract_is_named(broken, message, tiny_config):
    tiny_config.policy = OWN
    experiment = prepare_experiment(tiny_config)
    search = dataclasses.replace(experiment.search, controller=experiment.search.controller._replace(**broken))
    batch = {"input": jax.ShapeDtypeStruct((8, 8, 8, 1), jnp.float32), "label": jax.ShapeDtypeStruct((8,), jnp.int32)}
    with pytest.raises(ValueError, match=message):
        state = jax.eval_shape(
            lambda: finished.initial_state(dataclasses.replace(experiment, search=search), experiment.trials[0])
        )
        jax.eval_shape(make_search_step(search), state, batch, batch)


def test_fisher_scores_start_with_the_prior_and_are_a_running_mean():
    """What is padding, or has no choice, does not count."""
    bits = np.asarray([[2.0, 3.0, 4.0], [4.0, 8.0, np.inf], [8.0, np.inf, np.inf]])
    prior = np.asarray([[1, 0.5, 0.25], [1, 1 / 16, 0], [1, 0, 0]])
    np.testing.assert_array_equal(fisher.prior_losses(bits), prior)
    controller = fisher.make_controller(bits, total_steps=300, examples=8)
    state, mean = controller.init(), np.zeros((3, 3))
    rng = np.random.default_rng(0)
    for step in range(60):
        expected = -1000 * (prior if step < 20 else mean / np.mean([np.ptp(mean[0]), np.ptp(mean[1, :2])]))
        np.testing.assert_allclose(controller.scores(state, jnp.asarray(step)), expected, rtol=1e-3)
        losses = rng.exponential(size=(3, 3))
        losses[2, 1:] *= 1e6
        mean += max(1 / (1 + step), 5 / (5 + step)) * (losses - mean)
        seen = Observation(jnp.asarray(step), None, None, None, None, None, jnp.asarray(losses, jnp.float32))
        state, _ = controller.learn(state, seen)
        np.testing.assert_allclose(state.losses, mean, rtol=1e-4)
    short = fisher.make_controller(bits, total_steps=50, examples=8)
    fifth = state._replace(measured=jnp.asarray(5))
    assert not np.allclose(short.scores(fifth, jnp.asarray(5)), -1000 * prior)
    np.testing.assert_allclose(controller.scores(fifth, jnp.asarray(300)), -1000 * prior)


def test_pinned_and_tied_layers_are_sampled_within_the_budget():
    config = make_tiny_config()
    config.policy, config.target = "fisher", 1.5
    config.rules = ("classifier: int8", "stem|.*/shortcut: tie")
    experiment = prepare_experiment(config)
    search = experiment.search
    p = np.asarray(
        jax.nn.softmax(finished.initial_state(experiment, experiment.trials[0]).policy(0).logits), np.float64
    )
    names = [decision.name for decision in search.plan.space.decisions]
    np.testing.assert_array_equal(p[names.index("classifier.format")], [1, 0, 0])
    assert len(p) == 3
    (budget,) = search.budgets
    genomes = list(np.ndindex(*search.plan.space.option_counts))
    probable = [np.prod([p[d, option] for d, option in enumerate(genome)]) for genome in genomes]
    costs = [pricing.price_exactly(budget.table, np.asarray(genome)) for genome in genomes]
    assert np.dot(probable, costs) / budget.target == pytest.approx(1, abs=1e-4)


# From end to end.


@pytest.fixture(scope="module")
def two_targets():
    config = make_tiny_config()
    config.policy, config.controller.fisher.freeze_fraction, config.targets = "fisher", 0.5, (4.0, 1.15)
    config.baselines = ("int4",)
    return config


@pytest.fixture(scope="module")
def done(two_targets, tmp_path_factory):
    return run_in(tmp_path_factory.mktemp("targets") / "run", two_targets)[0]


def test_one_training_ends_with_a_network_for_each_target(done):
    root, other, uniform = done
    assert [path.name for path in done] == ["run", "target-4", "uniform-int4"]
    summaries = [summary_of(path) for path in done]
    assert [s["name"] for s in summaries] == ["FLIQS int_s, 1.15 × int4", "FLIQS int_s, 4 × int4", "uniform int4"]
    unit = summaries[2]["cost"]
    for summary, target in zip(summaries, (1.15, 4.0), strict=False):
        assert summary["target"] == pytest.approx(target * unit)
        assert summary["relative_cost"] <= 1
        assert summary["search_step_compilations"] == 1
        assert summary["config"]["target"] == target
        assert np.shape(summary["scores"]) == (4, 3)
    assert summaries[0]["cost"] < summaries[1]["cost"]
    assert summaries[0]["state_sha256"] == summaries[1]["state_sha256"]
    for path in (root, other):
        experiment = finished.read_experiment(path)
        assert finished.read_network(path, experiment).layers.keys() == set(experiment.search.paths)
        genome = json.loads((path / "genome.json").read_text())
        assert {p: c["format"] for p, c in genome["layers"].items()} == {
            layer["path"]: layer["format"] for layer in summary_of(path)["layers"]
        }
    assert not (other / "metrics.jsonl").exists()
    assert [run.directory for run in recorded_runs.read_runs([root])] == done
    page = fliqs_page.write(done, root.parent / "report.html").read_text()
    assert "One genome is trained from step 8 on" in page
    assert "Scores of layers and formats" in page
    assert "FLIQS int_s, 4 × int4" in page
    lines = [json.loads(line) for line in (root / "metrics.jsonl").read_text().splitlines()]
    assert "valid_quality" not in lines[0] and "reward" not in lines[0]
    assert lines[0]["expected_cost"] == pytest.approx(1, abs=1e-3)
    chosen = np.asarray(summary_of(root)["genome"])
    np.testing.assert_array_equal(lines[-1]["policy"], np.eye(3)[chosen])
    assert uniform.parent == root


def test_a_network_that_is_gone_is_made_again(done, two_targets, run_experiment, tmp_path):
    copy = shutil.copytree(done[0], tmp_path / "copy")
    before = (copy / "target-4" / "network.safetensors").read_bytes()
    shutil.rmtree(copy / "target-4")
    directories, said = run_experiment(two_targets, copy)
    assert "already complete" in said
    assert (directories[1] / "network.safetensors").read_bytes() == before


@pytest.mark.parametrize("after", [5, 12])
def test_stopped_before_or_after_the_freeze_it_ends_the_same(done, two_targets, after, run_experiment):
    config = two_targets.copy_and_resolve_references()
    config.baselines = ()
    with pytest.raises(loop.Stopped):
        run_experiment(config, stop=StopAfter(after))
    directories, said = run_experiment(config)
    assert "going on from step" in said
    for mine, whole in zip(directories, done, strict=False):
        assert final_digest(mine) == final_digest(whole)
        assert (mine / "network.safetensors").read_bytes() == (whole / "network.safetensors").read_bytes()


def test_a_search_that_is_not_frozen_keeps_its_budget_too(tiny_config, run_experiment):
    tiny_config.policy = OWN
    (directory,), _ = run_experiment(tiny_config)
    summary = summary_of(directory)
    assert summary["policy"] == OWN
    assert {layer["format"] for layer in summary["layers"]} == {"int4"}
    assert summary["frozen_from_step"] == 16


PEAK = {"cost": "peak_activation_bytes", "target": 1.5}
REFUSED = [
    ({"targets": (1.15, 1.3)}, r"targets=\(1.15, 1.3\): the policy 'reinforce' learns one target"),
    ({"policy": "fisher", "targets": (1.3, 1.5)}, r"target=1.15: expected one of targets=\(1.3, 1.5\)"),
    ({"policy": "fisher", "targets": (1.15, 1.15)}, "one target is there twice"),
    ({"policy": "fisher", "targets": (1.15, 1.1500001)}, "one target is there twice"),
    ({"policy": "uniform", "targets": (1.15, 1.3)}, "a random search has one target"),
    ({"controller.reinforce.freeze_fraction": 0.27}, "freeze_fraction=0.27: expected a later part of training"),
    ({"policy": "fisher", "targets": (1.15, 0.5)}, "0.5 is out of reach: genomes cost from 1 to 16"),
    ({"policy": "fisher", "targets": ("1.15",)}, r"targets=\('1.15',\): expected a tuple of numbers"),
    ({"policy": "fisher", "controller.fisher.examples": 0}, "controller.fisher.examples=0: expected a whole number"),
    (
        {"policy": "fisher", "controller.fisher.freeze_fraction": 1.5},
        "freeze_fraction=1.5: expected a fraction of training",
    ),
    (
        {"controller.reinforce.freeze_fraction": 0.2},
        "freeze_fraction=0.2: expected a later part of training than .*fraction=0.25",
    ),
    ({"controller.reinforce.within_budget": True, "targets": (1.15, 1.3)}, "the policy 'reinforce' learns one target"),
    (
        {"controller.reinforce.within_budget": True} | PEAK,
        "policy='reinforce': the dearest layer alone makes the cost: only policy=reinforce, not within the budget",
    ),
    ({"policy": "fisher"} | PEAK, "policy='fisher': the dearest layer alone makes the cost: only policy=reinforce"),
    ({"policy": f"{__name__}:searched_by_nobody"}, "expected a fliqs_jax.controller.Controller, got NoneType"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_what_cannot_be_sampled_within_the_budget_is_refused(tiny_config, changes, message):
    with tiny_config.unlocked():
        tiny_config.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=message):
        prepare_experiment(tiny_config)
