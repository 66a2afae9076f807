"""One-shot search: a controller samples the format of every layer at every training step (FLIQS, §3, Figure 2).

`make_search_step` makes the one step, which reads and writes a `SearchState`. Searches, uniform baselines, random
search and training with a fixed genome differ only in `SearchState.policy`.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from aqt_like import format_choice, interception
from aqt_like.format_probe import fisher_scores
from fliqs_jax import sampling
from fliqs_jax.controller import Controller, Observation
from fliqs_jax.losses import Batch, Loss
from fliqs_jax.models import elastic
from fliqs_jax.models.calling import CalledModel
from fliqs_jax.models.elastic import Family
from fliqs_jax.models.rematerialisation import rematerialised
from fliqs_jax.policy import Policy, init_policy
from fliqs_jax.quality import Quality
from hwcost import expected_pricing, pricing
from hwcost.expected_pricing import RelativeCosts
from hwcost.format_plan import FormatPlan
from hwcost.pricing import Budget

Metrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search:
    """Constant part of a search.

    Attributes:
      model: any linen module, and how it is called.
      plan: the L layers whose formats are searched, and what genomes mean.
      bank: K formats that each layer chooses from.
      budgets: costs C of a genome and their targets C_T, the main one first.
      targets: targets of the main cost, which steps take in turn: each has a policy, and ends with a genome, of its
        own. If empty, that of the main budget alone.
      optimizer: updates the weights.
      loss: `(logits, train_batch) -> scalar`, training loss of the weights: a mean over examples.
      quality: Q in the reward, and metric of the finished network.
      controller: gives the scores that formats are sampled by.
      total_steps: number of training steps.
      input_quantization_step: first step at which inputs (activations) are quantised (FLIQS, A.2).
      profile_steps: first step at which inputs are no longer profiled.
      quantizer: gradient estimator, granularity and scales of the quantisation, and the type of codes.
      family: the networks whose architecture is searched as well (FLIQS, §6), of which `model` is the largest.
      joint_steps: over these first steps, the probability falls from 1 to 0 with which all sizes of a layer's kernel
        are trained together (FLIQS, A.4).
      rematerialise: expression for paths of blocks that the backward pass computes again; none if empty.
    """

    model: CalledModel
    plan: FormatPlan
    bank: format_choice.FormatBank
    budgets: tuple[Budget, ...]
    targets: tuple[float, ...] = ()
    optimizer: optax.GradientTransformation
    loss: Loss
    quality: Quality
    controller: Controller
    total_steps: int
    input_quantization_step: int
    profile_steps: int
    quantizer: interception.Quantizer = interception.DEFAULT_QUANTIZER
    family: Family | None = None
    joint_steps: int = 0
    rematerialise: str = ""

    @property
    def paths(self) -> tuple[str, ...]:
        """Paths of the searched layers."""
        return tuple(layer.path for layer in self.plan.workload)

    @property
    def freeze_step(self) -> int:
        """First step at which one genome per target is trained; `total_steps` for none."""
        return round(self.controller.freeze_fraction * self.total_steps)

    @property
    def target_count(self) -> int:
        """T, the number of targets that are trained in turn."""
        return max(len(self.targets), 1)

    def budgets_of(self, number: Any) -> tuple[Budget, ...]:
        """The budgets of a target by its number, which may be traced."""
        if not self.targets:
            return self.budgets
        target: Any = self.targets[number] if isinstance(number, int) else jnp.asarray(self.targets)[number]
        return (self.budgets[0]._replace(target=target), *self.budgets[1:])

    @property
    def budgets_by_target(self) -> list[tuple[Budget, ...]]:
        """The budgets of each target."""
        return [self.budgets_of(number) for number in range(self.target_count)]

    @property
    def relative_costs(self) -> RelativeCosts | None:
        """The costs over their targets, if the controller is sampled within the budget.

        Raises:
          ValueError: it is, and a cost is a peak over layers.
        """
        if not self.controller.within_budget:
            return None
        return expected_pricing.relative_costs(self.plan.space, self.budgets_by_target)


class SearchState(NamedTuple):
    """Complete state of a search; checkpoints store all of it.

    Attributes:
      step: int32, number of completed steps; also the position in the data.
      key: typed PRNG key of the run; each step folds in its number.
      params, batch_stats, calibration: variable collections of the model; of a family, `params` are `elastic.Weights`.
      collections: further collections of the model by name, as of caches.
      opt_state: optimiser state of the weights.
      clip_multiples: clip thresholds in units of the root mean square, leaves `[L, K]`.
      policies: the policy that each target's next step samples from, leaves `[T, …]`.
      controller: state of the controller.
    """

    step: jax.Array
    key: jax.Array
    params: Any
    batch_stats: Any
    calibration: Any
    opt_state: Any
    clip_multiples: format_choice.ClipMultiples
    policies: Policy
    controller: Any
    collections: dict[str, Any]

    @property
    def variables(self) -> dict[str, Any]:
        """The variables of the model, without formats."""
        return {"params": self.params, "batch_stats": self.batch_stats, **self.collections}

    def policy(self, number: Any) -> Policy:
        """The policy of a target by its number, which may be traced."""
        return jax.tree.map(lambda leaf: leaf[number], self.policies)


def init_state(
    search: Search,
    policy: Policy,
    clip_multiples: format_choice.ClipMultiples,
    key: jax.Array,
    inputs: Any,
) -> SearchState:
    """Initial state of a search.

    Args:
      search: its constant part.
      policy: policy of all targets; if it learns, the controller replaces its logits.
      clip_multiples: clip thresholds.
      key: PRNG key.
      inputs: a batch of inputs, of which only shapes and types are used.
    """
    init_key, run_key = jax.random.split(key)
    if search.family:
        params, batch_stats = elastic.init(search.family, init_key, inputs, train=False)
        collections = {}
    else:
        variables = search.model.init(init_key, inputs)
        params, batch_stats = variables["params"], variables.get("batch_stats", {})
        collections = {name: variables[name] for name in search.model.collections}
    controller = search.controller.init()
    step = jnp.zeros((), jnp.int32)
    policies = jax.tree.map(lambda leaf: jnp.stack([leaf] * search.target_count), policy)
    return SearchState(
        step=step,
        key=run_key,
        params=params,
        batch_stats=batch_stats,
        calibration=interception.empty_calibration(search.paths),
        opt_state=search.optimizer.init(params),
        # Copied because a step donates its state, while other runs start from the same multiples.
        clip_multiples=jax.tree.map(jnp.copy, clip_multiples),
        policies=sampling.next_policies(search.controller, search.relative_costs, policies, controller, step),
        controller=controller,
        collections=collections,
    )


def settled_genomes(search: Search, state: SearchState) -> list[np.ndarray]:
    """The genome of each target that a state stands for, int32[D] each, on the host (`sampling.settled_genomes`)."""
    return sampling.settled_genomes(
        search.controller,
        search.plan.space,
        search.budgets_by_target,
        state.policies,
        state.controller,
        state.step,
    )


def freeze_genomes(search: Search, state: SearchState) -> SearchState:
    """The state from which on `settled_genomes` are trained; the compiled step stays the same."""
    if not state.policies.learns[0]:
        return state
    fixed = [init_policy(search.plan.space, "fixed", genome) for genome in settled_genomes(search, state)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *fixed)
    placed = jax.tree.map(lambda new, old: jax.device_put(new, old.sharding), stacked, state.policies)
    return state._replace(policies=placed)


def quantized_variables(
    search: Search,
    state: SearchState,
    genome: jax.Array,
    quantize_inputs: Any,
) -> dict[str, Any]:
    """Variables of the model with the formats of `genome`, int32[D], for `interception.apply_quantized`."""
    return split_by_layer(search, stacked_variables(search, state, genome, quantize_inputs))


def split_by_layer(search: Search, variables: dict[str, Any]) -> dict[str, Any]:
    """`stacked_variables` as `interception.apply_quantized` takes them."""
    return {**variables, "formats": interception.by_layer(search.paths, variables["formats"])}


def stacked_variables(
    search: Search,
    state: SearchState,
    genome: jax.Array,
    quantize_inputs: Any,
    *,
    probed: jax.Array | None = None,
    joint: Mapping[str, jax.Array] | None = None,
) -> dict[str, Any]:
    """`quantized_variables` with formats that are not yet split by layer: leaves `[L]`.

    Of a family, they are those under which the largest network computes that of the genome; `joint` is that of
    `elastic.specialised`. The gradient of the loss with respect to `probed`, float32[L, 2, K] of zeros, tells what
    other formats would do, as long as the policies learn (`format_choice.probe_all_formats`).
    """
    bank, multiples = search.bank, state.clip_multiples
    profile = interception.stacked_calibration(search.paths, state.calibration)
    choice, scale_rule = search.plan.choice(genome), search.quantizer.input_scale_rule
    formats = format_choice.chosen_formats(bank, multiples, choice, profile, quantize_inputs, scale_rule=scale_rule)
    if probed is not None:
        active, examples = state.policies.learns[0], search.controller.examples
        probe = format_choice.probe_all_formats(
            bank, multiples, profile, probed, active=active, examples=examples, scale_rule=scale_rule
        )
        formats = formats._replace(probe=probe)
    params = state.params
    if search.family:
        options = elastic.options_of(search.plan.space, genome)
        params = elastic.specialised(search.family, params, options, joint)
        formats = formats._replace(input_share=elastic.input_shares(search.family, options, search.paths))
    return {
        **state.variables,
        "params": params,
        "calibration": state.calibration,
        "formats": formats,
    }


def joint_kernels(search: Search, key: jax.Array, step: jax.Array) -> dict[str, jax.Array] | None:
    """Whether all sizes of a layer's kernel run together, bools by decision, drawn for a step (FLIQS, A.4)."""
    if not search.family or not search.joint_steps:
        return None
    names = [layer.kernel for layer in search.family.layers if layer.kernel]
    drawn = jax.random.uniform(key, (len(names),)) < 1 - step / search.joint_steps
    return dict(zip(names, drawn, strict=True))


def make_search_step(search: Search) -> Callable[[SearchState, Batch, Batch], tuple[SearchState, Metrics]]:
    """Makes the search step `(state, train_batch, valid_batch) -> (state, metrics)`, to be jitted with `state` donated.

    Batches contain `"input"`, `[B, …]`, `"label"`, and whatever else the loss reads. Metrics are scalars except
    `"genome"`, int32[D].
    """
    apply = functools.partial(interception.apply_quantized, quantizer=search.quantizer)
    controller, costs = search.controller, search.relative_costs
    layers, formats = len(search.paths), search.bank.signed.bits.shape[0]

    def step_fn(state: SearchState, train_batch: Batch, valid_batch: Batch) -> tuple[SearchState, Metrics]:
        quantize_inputs = state.step >= search.input_quantization_step

        def own_key(use: int) -> jax.Array:
            """A key of this step for another use than that of the trained genome."""
            return jax.random.fold_in(state.key, use * search.total_steps + state.step)

        # Sample a genome. Targets take turns.
        turn = state.step % search.target_count if search.targets else 0
        policy, budgets = state.policy(turn), search.budgets_of(turn)
        genome = policy.sample(jax.random.fold_in(state.key, state.step))

        # Train the weights with the formats of this genome.
        profiling = state.step < search.profile_steps
        joint = joint_kernels(search, own_key(controller.draws + 1), state.step)
        rngs = own_key(controller.draws + 2)  # of dropout and the like

        def train_loss(params: Any, probed: jax.Array | None) -> tuple[jax.Array, tuple[jax.Array, Any]]:
            own_state = state._replace(params=params)
            variables = stacked_variables(search, own_state, genome, quantize_inputs, probed=probed, joint=joint)
            with rematerialised(search.rematerialise):
                logits, updated = apply(
                    search.model,
                    split_by_layer(search, variables),
                    train_batch["input"],
                    train=True,
                    rngs=rngs,
                    mutable=[*search.model.updated, "calibration"],
                    profiling=profiling,
                )
            return search.loss(logits, train_batch), (logits, updated)

        probed = jnp.zeros((layers, 2, formats)) if controller.examples else None
        with_gradients = jax.value_and_grad(train_loss, argnums=(0, 1), has_aux=True)
        (loss, (logits, updated)), (gradient, squares) = with_gradients(state.params, probed)
        updates, opt_state = search.optimizer.update(gradient, state.opt_state, state.params)
        state = state._replace(
            params=optax.apply_updates(state.params, updates),
            batch_stats=updated.get("batch_stats", state.batch_stats),
            calibration=updated["calibration"],
            collections={name: updated[name] for name in state.collections},
            opt_state=opt_state,
        )
        losses = jnp.zeros(policy.logits.shape)
        if squares is not None:
            losses = search.plan.option_sums(fisher_scores(squares, len(train_batch["label"])))

        # Measure the quality on validation data. Running batch statistics lag behind formats that change at every step,
        # so this batch is normalised by its own statistics. Nothing is dropped.
        def valid_quality(genome: jax.Array) -> jax.Array:
            variables = quantized_variables(search, state, genome, quantize_inputs)
            with search.model.without_dropout():
                valid_logits, _ = apply(
                    search.model, variables, valid_batch["input"], train=True, mutable=search.model.updated
                )
            return search.quality.on_batch(valid_logits, valid_batch)

        drawn = [genome, *(policy.sample(own_key(use)) for use in range(2, controller.draws + 1))]
        relative_costs = [pricing.price_relative(budgets, each) for each in drawn]
        observation = Observation(
            step=state.step,
            key=own_key(1),
            genomes=jnp.stack(drawn)[: controller.draws],
            logits=policy.logits,
            qualities=jnp.asarray([valid_quality(each) for each in drawn[: controller.draws]]),
            relative_costs=jnp.stack(relative_costs)[: controller.draws],
            losses=losses,
        )
        learned, told = controller.learn(state.controller, observation)
        if jax.tree.map(jax.typeof, learned) != jax.tree.map(jax.typeof, state.controller):
            raise ValueError("the controller learns a state of another structure, shape or type than it begins with")
        learned = jax.tree.map(lambda new, old: jnp.where(policy.learns, new, old), learned, state.controller)
        metrics = {
            **told,
            "loss": loss,
            "train_quality": search.quality.on_batch(logits, train_batch),
            **({"valid_quality": observation.qualities[0]} if controller.draws else {}),
            "cost": pricing.price(budgets[0].table, genome),
            "relative_cost": relative_costs[0],
            "entropy": policy.entropy(),
            "genome": genome,
        }
        if costs is not None:
            metrics["expected_cost"] = sampling.expected_cost(policy, costs.traced().of_set(turn))
        return state._replace(
            step=state.step + 1,
            policies=sampling.next_policies(controller, costs, state.policies, learned, state.step + 1),
            controller=learned,
        ), metrics

    return step_fn
