"""Accuracy of subnetworks with the weights of the once-for-all network (APQ, §3.2 and §4; Algorithm 1, line 1).

In float, a subnetwork is evaluated without training, after recalibration of its batch statistics. Under quantisation,
it is evaluated after a short fine-tuning. The genome is traced, so one compilation serves all subnetworks.
"""

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from apq_jax import supernet
from apq_jax.network_space import NetworkSpace
from aqt_like import calibration, format_choice, interception, recalibration
from aqt_like.calibration import CRITERIA, Statistic
from aqt_like.recalibration import Sums
from fliqs_jax.models import elastic
from fliqs_jax.models.elastic import Params, Weights

Batch = Mapping[str, Any]


class Data(NamedTuple):
    """The batches that an accuracy is measured with, in order.

    Attributes:
      calibration: training data for batch statistics and for the calibration of inputs.
      training: one batch for each step of fine-tuning.
      validation: examples that accuracy is measured on; a label of −1 marks padding.
    """

    calibration: Sequence[Batch]
    training: Sequence[Batch]
    validation: Sequence[Batch]


Accuracy = Callable[[Weights, Params, Data, jax.Array], float]
"""`(weights, batch_stats, data, genome int32[D])` → accuracy of the genome's subnetwork on the validation examples."""


def _correct_predictions(logits: Any, batch: Batch) -> jax.Array:
    return jnp.sum(jnp.argmax(logits, axis=-1) == batch["label"])


def _share_of_correct(count_correct: Callable[[Batch], jax.Array], validation: Sequence[Batch]) -> float:
    """Accuracy over all batches, which are all dispatched before the first result is awaited."""
    counts = [(count_correct(batch), np.sum(np.asarray(batch["label"]) >= 0)) for batch in validation]
    return float(sum(int(correct) for correct, _ in counts) / sum(total for _, total in counts))


# Loops over batches run in Python, since XLA's convolutions are slow inside loops on CPUs.


def make_float_accuracy(space: NetworkSpace) -> Accuracy:
    """The accuracy of float subnetworks, evaluated without training after recalibration of batch statistics."""
    largest = space.family.largest
    specialise = jax.jit(functools.partial(supernet.specialised, space))

    @jax.jit
    def batch_sums(params: Params, stats: Params, batch: Batch) -> dict[str, Sums]:
        def update(variables: dict[str, Any]) -> Any:
            return largest.apply(variables, batch["input"], train=True, mutable=["batch_stats"])[1]

        return recalibration.batch_sums(update, {"params": params, "batch_stats": stats})

    @jax.jit
    def count_correct(params: Params, stats: Params, batch: Batch) -> jax.Array:
        return _correct_predictions(
            largest.apply({"params": params, "batch_stats": stats}, batch["input"], train=False), batch
        )

    def accuracy(weights: Weights, batch_stats: Params, data: Data, genome: jax.Array) -> float:
        params = specialise(weights, genome)
        sums = (batch_sums(params, batch_stats, batch) for batch in data.calibration)
        stats = recalibration.recalibrated(batch_stats, sums)
        return _share_of_correct(functools.partial(count_correct, params, stats), data.validation)

    return accuracy


class Clipping(NamedTuple):
    """How a quantiser clips.

    Attributes:
      granularity: of weights, a name that `interception.kernel_clip` takes.
      statistic: what clip multiples of weights are multiples of.
      source: where clip multiples come from, as in `clip.source` of configs/common.py.
    """

    granularity: str
    statistic: Statistic
    source: str


QUANTIZERS: Mapping[str, Clipping] = {
    "gaussian": Clipping("per_channel", calibration.root_mean_square_of_present, "precomputed"),
    "least_divergence": Clipping("per_tensor", calibration.root_mean_square, "least_divergence"),  # APQ, Eq. 5
}
"""The quantisers of records and of finished networks: stored multiples for Gaussian values, for each output channel of
weights; or the thresholds of least divergence on a batch, one for all weights of a layer (APQ, §4)."""


def _distinct(names: Sequence[str]) -> tuple[jax.Array, jax.Array]:
    """The place of each different name, and which of these each name is, int32[K]."""
    _, first, number = np.unique(names, return_index=True, return_inverse=True)
    return jnp.asarray(first), jnp.asarray(number)


def make_quantized_accuracy(
    space: NetworkSpace,
    *,
    clipping: Clipping,
    optimizer: optax.GradientTransformation,
    loss: Callable[[jax.Array, Any], jax.Array],
) -> Accuracy:
    """The accuracy of quantised subnetworks, after fine-tuning on `data.training` with fake quantisation (APQ, §4).

    Clip multiples that are measured are of the first calibration batch and of the weights before fine-tuning.
    """
    paths, members = tuple(layer.path for layer in space.layers), space.formats
    bank = format_choice.format_bank(members, use_unsigned=True)
    precomputed = format_choice.precomputed_clip_multiples(members, len(paths), "gaussian", use_unsigned=True)
    clip = interception.kernel_clip(clipping.granularity, clipping.statistic)
    quantizer = interception.Quantizer(weight_clip=clip)
    criterion = CRITERIA.get(clipping.source)

    apply_variables = functools.partial(interception.apply_quantized, space.family.largest, quantizer=quantizer)

    def apply(weights: Weights, genome: jax.Array, collections: dict[str, Any], x: jax.Array, **how: Any) -> Any:
        return apply_variables({"params": supernet.specialised(space, weights, genome), **collections}, x, **how)

    @jax.jit
    def profile(weights: Weights, genome: jax.Array, stats: Params, profiles: Any, batch: Batch) -> Any:
        collections = {"batch_stats": stats, "calibration": profiles}
        mutable = ["batch_stats", "calibration"]
        return apply(weights, genome, collections, batch["input"], train=True, mutable=mutable)[1]["calibration"]

    @jax.jit
    def clip_multiples(weights: Weights, genome: jax.Array, stats: Params, batch: Batch) -> Any:
        assert criterion
        variables = {"params": supernet.specialised(space, weights, genome), "batch_stats": stats}
        operands = interception.layer_operands(
            space.family.largest, variables, batch["input"], train=True, mutable=["batch_stats"]
        )
        # Pairs share formats, each of which is measured once.
        first_weights, weights_of = _distinct([member.weights.name for member in members])
        first_inputs, inputs_of = _distinct([member.inputs.name for member in members])
        distinct = bank._replace(
            weights=bank.weights.row(first_weights),
            signed=bank.signed.row(first_inputs),
            unsigned=bank.unsigned.row(first_inputs),
        )
        found = format_choice.profiled_clip_multiples(paths, distinct, operands, criterion)
        return format_choice.ClipMultiples(
            found.weights[:, weights_of], found.inputs[:, inputs_of], found.unsigned_inputs[:, inputs_of]
        )

    @jax.jit
    def formats_under(genome: jax.Array, profiles: Any, multiples: Any) -> Any:
        stacked = interception.stacked_calibration(paths, profiles)
        if criterion is None:  # Stored multiples are of what is there; measured ones of absent channels' zeros as well.
            options = elastic.options_of(space.search_space, genome)
            shares = elastic.input_shares(space.family, options, paths)
            stacked = stacked._replace(mean_square=stacked.mean_square / shares)
        return format_choice.chosen_formats(bank, multiples, space.format_choice(genome), stacked, jnp.asarray(True))

    init_optimizer = jax.jit(optimizer.init)

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
    def batch_sums(weights: Weights, genome: jax.Array, collections: dict[str, Any], batch: Batch) -> dict[str, Sums]:
        params = supernet.specialised(space, weights, genome)

        def update(variables: dict[str, Any]) -> Any:
            return apply_variables(variables, batch["input"], train=True, mutable=["batch_stats"])[1]

        return recalibration.batch_sums(update, {"params": params, **collections})

    @jax.jit
    def count_correct(weights: Weights, genome: jax.Array, collections: dict[str, Any], batch: Batch) -> jax.Array:
        return _correct_predictions(apply(weights, genome, collections, batch["input"], train=False), batch)

    def accuracy(weights: Weights, batch_stats: Params, data: Data, genome: jax.Array) -> float:
        # Passes in training mode do not read batch statistics.
        profiles = interception.empty_calibration(paths)
        for batch in data.calibration:
            profiles = profile(weights, genome, batch_stats, profiles, batch)
        interception.check_profile(paths, interception.stacked_calibration(paths, profiles))
        multiples = precomputed
        if criterion:
            multiples = clip_multiples(weights, genome, batch_stats, data.calibration[0])
        formats = interception.by_layer_on_host(paths, formats_under(genome, profiles, multiples))
        collections = {"batch_stats": batch_stats, "formats": jax.device_put(formats)}
        opt_state = init_optimizer(weights)
        for batch in data.training:
            weights, opt_state = fine_tune(weights, opt_state, genome, collections, batch)
        sums = (batch_sums(weights, genome, collections, batch) for batch in data.calibration)
        # Fine-tuning may diverge: the accuracy without recalibration is then that of chance too.
        with contextlib.suppress(recalibration.StatisticsError):
            collections["batch_stats"] = recalibration.recalibrated(batch_stats, sums)
        return _share_of_correct(functools.partial(count_correct, weights, genome, collections), data.validation)

    return accuracy
