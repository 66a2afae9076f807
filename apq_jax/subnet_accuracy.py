"""What networks of a space reach, from the weights of the once-for-all network (APQ, §3.2 and §4).

In float they are evaluated as they are, with batch statistics recalibrated; under quantisation after a short
fine-tuning each. The genome is traced: one compilation serves all networks.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from apq_jax import supernet
from apq_jax.architectures import BIT_DECISIONS, ArchitectureSpace
from apq_jax.block_network import BlockNetwork
from apq_jax.supernet import Params, Weights
from aqt_like import format_choice, granularity, interception
from aqt_like.formats import LayerFormat, format_pair

Batch = Mapping[str, Any]
MOMENTUM = 0.9  # of batch statistics, as in the network


class Data(NamedTuple):
    """What accuracies are measured with: batches in order.

    Attributes:
      calibration: of training data, for batch statistics and profiles of inputs.
      training: those of a fine-tuning, one for each of its steps.
      validation: what accuracy is measured on; labels of −1 are padding.
    """

    calibration: Sequence[Batch]
    training: Sequence[Batch]
    validation: Sequence[Batch]


Accuracy = Callable[[Weights, Params, Data, jax.Array], float]
"""`(weights, batch_stats, data, genome)` → share of validation examples that the genome's network gets right."""


@jax.jit
def _empty_stats(stats: Params) -> Params:
    return jax.tree.map(jnp.zeros_like, stats)


@functools.partial(jax.jit, static_argnames="batches")
def _settled(stats: Params, batches: int) -> Params:
    """Running averages that started from zero, without the share of that zero."""
    return jax.tree.map(lambda leaf: leaf / (1 - MOMENTUM**batches), stats)


def _right(logits: Any, batch: Batch) -> jax.Array:
    return jnp.sum(jnp.argmax(logits, axis=-1) == batch["label"])


def _share(right: Callable[[Batch], jax.Array], validation: Sequence[Batch]) -> float:
    """Over all batches, which are dispatched before any result is waited for."""
    counts = [(right(batch), np.sum(np.asarray(batch["label"]) >= 0)) for batch in validation]
    return float(sum(int(found) for found, _ in counts) / sum(total for _, total in counts))


# Loops over batches are Python's: XLA's convolutions are slow inside its own on CPUs.


def make_float_accuracy(space: ArchitectureSpace, full: BlockNetwork) -> Accuracy:
    """Of networks in float, as they are in the once-for-all network, with batch statistics recalibrated."""
    specialise = jax.jit(functools.partial(supernet.specialised, space))

    @jax.jit
    def recalibrate(params: Params, stats: Params, batch: Batch) -> Params:
        variables = {"params": params, "batch_stats": stats}
        return full.apply(variables, batch["input"], train=True, mutable=["batch_stats"])[1]["batch_stats"]

    @jax.jit
    def right(params: Params, stats: Params, batch: Batch) -> jax.Array:
        return _right(full.apply({"params": params, "batch_stats": stats}, batch["input"], train=False), batch)

    def accuracy(weights: Weights, batch_stats: Params, data: Data, genome: jax.Array) -> float:
        params, stats = specialise(weights, genome), _empty_stats(batch_stats)
        for batch in data.calibration:
            stats = recalibrate(params, stats, batch)
        stats = _settled(stats, len(data.calibration))
        return _share(functools.partial(right, params, stats), data.validation)

    return accuracy


def _rms_of_present(x: jax.Array, axes: tuple[int, ...] | None = None) -> jax.Array:
    """Root mean square of what is not zero: what was taken away from a kernel does not count."""
    present = jnp.sum(x != 0, axis=axes, keepdims=axes is not None)
    return jnp.sqrt(jnp.sum(jnp.square(x), axis=axes, keepdims=axes is not None) / jnp.maximum(present, 1))


class GenomeFormats(NamedTuple):
    """What a genome's bits mean for the L layers of the largest network.

    Attributes:
      paths: of the layers.
      members: the formats that they choose from.
      choice: `(genome) → int32[L]`, the index of each layer's format; fixed layers have the widest.
    """

    paths: tuple[str, ...]
    members: tuple[LayerFormat, ...]
    choice: Callable[[jax.Array], jax.Array]


def genome_formats(space: ArchitectureSpace) -> GenomeFormats:
    """All pairs of bits for weights and inputs; expansion and projection share theirs (pointwise)."""
    names = [f"int{bits}" for bits in space.bits]
    members = tuple(format_pair(weights, inputs) for weights in names for inputs in names)
    widest, count = len(members) - 1, len(names)

    def choice(genome: jax.Array) -> jax.Array:
        options = {name: space.options(genome, name) for name in BIT_DECISIONS}
        pointwise = options["pointwise_weights"] * count + options["pointwise_inputs"]
        depthwise = options["depthwise_weights"] * count + options["depthwise_inputs"]
        inside = jnp.stack([pointwise, depthwise, pointwise], axis=1).ravel()
        fixed = jnp.full((3,), widest)
        return jnp.concatenate([fixed, inside, fixed[:2]])

    return GenomeFormats(tuple(supernet.layer_paths(space)), members, choice)


def make_quantized_accuracy(
    space: ArchitectureSpace,
    full: BlockNetwork,
    *,
    optimizer: optax.GradientTransformation,
    loss: Callable[[jax.Array, Any], jax.Array],
) -> Accuracy:
    """Of networks under the genome's bits, after a fine-tuning over `data.training`."""
    layer_choices = genome_formats(space)
    paths, members = layer_choices.paths, layer_choices.members
    bank = format_choice.format_bank(members, use_unsigned=True)
    multiples = format_choice.precomputed_clip_multiples(members, len(paths), "gaussian", use_unsigned=True)
    quantizer = interception.Quantizer(weight_clip=granularity.Clipping(_rms_of_present, granularity.per_channel(-1)))

    def apply(weights: Weights, genome: jax.Array, collections: dict[str, Any], x: jax.Array, **how: Any) -> Any:
        variables = {"params": supernet.specialised(space, weights, genome), **collections}
        return interception.apply_quantized(full, variables, x, quantizer=quantizer, **how)

    @jax.jit
    def profile(weights: Weights, genome: jax.Array, stats: Params, seen: Any, batch: Batch) -> tuple[Params, Any]:
        collections = {"batch_stats": stats, "calibration": seen}
        mutable = ["batch_stats", "calibration"]
        _, updated = apply(weights, genome, collections, batch["input"], train=True, mutable=mutable)
        return updated["batch_stats"], updated["calibration"]

    @jax.jit
    def formats_under(genome: jax.Array, seen: Any) -> Any:
        profiles = interception.stacked_calibration(paths, seen)
        choice = layer_choices.choice(genome)
        return format_choice.format_state(paths, bank, multiples, choice, profiles, jnp.asarray(True))

    @jax.jit
    def fine_tune(
        weights: Weights, opt_state: Any, genome: jax.Array, collections: dict[str, Any], batch: Batch
    ) -> tuple[Weights, Any]:
        def train_loss(weights: Weights) -> jax.Array:
            logits, _ = apply(weights, genome, collections, batch["input"], train=True, mutable=["batch_stats"])
            return loss(logits, batch)

        updates, opt_state = optimizer.update(jax.grad(train_loss)(weights), opt_state, weights)
        tuned: Any = optax.apply_updates(weights, updates)
        return tuned, opt_state

    @jax.jit
    def recalibrate(weights: Weights, genome: jax.Array, collections: dict[str, Any], batch: Batch) -> Params:
        return apply(weights, genome, collections, batch["input"], train=True, mutable=["batch_stats"])[1][
            "batch_stats"
        ]

    @jax.jit
    def right(weights: Weights, genome: jax.Array, collections: dict[str, Any], batch: Batch) -> jax.Array:
        return _right(apply(weights, genome, collections, batch["input"], train=False), batch)

    def accuracy(weights: Weights, batch_stats: Params, data: Data, genome: jax.Array) -> float:
        stats, seen = _empty_stats(batch_stats), interception.empty_calibration(paths)
        for batch in data.calibration:
            stats, seen = profile(weights, genome, stats, seen, batch)
        quantized = {"formats": formats_under(genome, seen)}
        opt_state = optimizer.init(weights)
        for batch in data.training:
            weights, opt_state = fine_tune(weights, opt_state, genome, {"batch_stats": stats, **quantized}, batch)
        stats = _empty_stats(batch_stats)
        for batch in data.calibration:
            stats = recalibrate(weights, genome, {"batch_stats": stats, **quantized}, batch)
        collections = {"batch_stats": _settled(stats, len(data.calibration)), **quantized}
        return _share(functools.partial(right, weights, genome, collections), data.validation)

    return accuracy
