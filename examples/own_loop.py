"""FLIQS in a training loop of your own: your model, optimiser and step, our sampler, price and quantised apply.

    python -m examples.own_loop

No config and no `launch`. A search is made once, from the model and an example. Each step draws a genome, trains under
its formats, and tells the controller how good and how dear it was. It ends with 92.7 % of the held-out digits right at
1.01 × the target.
"""

import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

from aqt_like import format_choice, interception
from aqt_like.formats import format_space
from fliqs_jax import reinforce
from fliqs_jax.controller import Observation
from fliqs_jax.policy import Policy
from fliqs_jax.reward import absolute
from fliqs_jax.schedule import cosine
from hwcost import analytic, pricing, workload
from hwcost.format_plan import format_plan

MODEL = nn.Sequential([nn.Dense(64), nn.relu, nn.Dense(64), nn.relu, nn.Dense(10)])
BATCH, PROFILED = 128, 20  # inputs are quantised once they have been profiled for so many steps


def main(steps: int = 2000) -> tuple[float, float, dict[str, str]]:
    """Searches formats for an MLP on digits; returns accuracy on held-out digits, cost over target, and the formats."""
    x, y = (np.asarray(a, np.float32) for a in load_digits(return_X_y=True))
    train, test = ((x[part] / 16, y[part].astype(int)) for part in (slice(1400), slice(1400, None)))

    # The search: layers, formats, prices, the target, the controller.
    formats = format_space("int3,int4,int6,int8")
    plan = format_plan(workload.trace(MODEL, (64,)), formats)
    table, int4 = analytic.BIT_OPERATIONS.table(plan), analytic.BIT_OPERATIONS.uniform(plan.workload, formats[1])
    budgets = (pricing.Budget(table, 1.2 * int4),)
    paper = {"reward": absolute, "baseline_momentum": 0.95, "entropy_schedule": cosine, "entropy_end": 0.01}
    controller = reinforce.make_controller(
        plan.space, budgets, **paper, gamma=0.3, optimizer=optax.adam(0.02), warmup_steps=steps // 4, total_steps=steps,
        cost_samples=64,
    )  # fmt: skip
    paths = [layer.path for layer in plan.workload]
    bank = format_choice.format_bank(formats, use_unsigned=True)
    clips = format_choice.precomputed_clip_multiples(formats, len(paths), "gaussian", use_unsigned=True)

    def apply(params, profile, genome, x, quantize_inputs=jnp.asarray(True)):  # noqa: ANN001, ANN202, B008
        """The quantised model: logits, and the profile of its layers' inputs."""
        inputs = interception.stacked_calibration(paths, profile)
        rows = format_choice.format_state(paths, bank, clips, plan.choice(genome), inputs, quantize_inputs)
        variables = {"params": params, "calibration": profile, "formats": rows}
        logits, updated = interception.apply_quantized(MODEL, variables, x, mutable=["calibration"])
        return logits, updated["calibration"]

    # Your training, with a genome in each step.
    optimizer = optax.adamw(optax.cosine_decay_schedule(3e-3, steps))

    @jax.jit
    def train_step(state, step, x, y):  # noqa: ANN001, ANN202
        params, opt_state, profile, learned = state
        key = jax.random.fold_in(jax.random.key(0), step)
        exists = jnp.asarray(plan.space.exists)
        policy = Policy(jnp.where(exists, controller.scores(learned, step), -jnp.inf), jnp.asarray(True))
        genome = policy.sample(key)

        def loss(params):  # noqa: ANN001, ANN202
            logits, new_profile = apply(params, profile, genome, x, step >= PROFILED)
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), (logits, new_profile)

        (_, (logits, profile)), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        quality, cost = jnp.mean(logits.argmax(-1) == y), pricing.price_relative(budgets, genome)
        losses = jnp.zeros(policy.logits.shape)  # of a controller that measures none
        seen = Observation(step, key, genome[None], policy.logits, quality[None], cost[None], losses)
        learned, _ = controller.learn(learned, seen)
        return (optax.apply_updates(params, updates), opt_state, profile, learned), policy.mode()

    params = MODEL.init(jax.random.key(1), train[0][:1])["params"]
    state = params, optimizer.init(params), interception.empty_calibration(paths), controller.init()
    rng, genome = np.random.default_rng(0), jnp.zeros(len(plan.space), jnp.int32)
    for step in range(steps):
        batch = rng.integers(0, len(train[0]), BATCH)
        state, genome = train_step(state, jnp.int32(step), train[0][batch], train[1][batch])

    logits, _ = jax.jit(apply)(state[0], state[2], genome, test[0])
    accuracy, cost = float(np.mean(np.argmax(logits, -1) == test[1])), float(pricing.price_relative(budgets, genome))
    chosen = plan.layer_formats(np.asarray(genome))
    print(f"{accuracy:.2%} at {cost:.3f} × the target: {chosen}")
    return accuracy, cost, chosen


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
