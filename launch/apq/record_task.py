"""The measurement of subnetworks as plain data, which can be sent to another machine."""

import itertools
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from apq_jax import subnet_accuracy
from apq_jax.network_space import NetworkSpace
from apq_jax.shrinking import ShrinkingState
from apq_jax.supernet import Params, Weights
from fliqs_jax import losses
from launch import data
from launch.apq.pipeline import Pipeline
from launch.data.contract import on_device


def read_batches(pipeline: Pipeline, dataset: data.Dataset) -> subnet_accuracy.Data:
    """The batches that all records are measured with."""
    config = pipeline.config.records

    def take(count: int, first_step: int, *, augmented: bool) -> list[data.Batch]:
        stream = dataset.train_batches(
            "train", batch_size=config.batch_size, first_step=first_step, augmented=augmented
        )
        return ready(itertools.islice(stream, count))

    def ready(batches: Iterable[data.Batch]) -> list[data.Batch]:
        return [jax.device_get(on_device(dataset)(batch)) for batch in batches]

    return subnet_accuracy.Data(
        calibration=take(config.calibration_batches, 0, augmented=False),
        training=take(config.fine_tuning_steps, config.calibration_batches, augmented=True),
        validation=ready(dataset.eval_batches("valid", batch_size=config.batch_size)),
    )


class RecordTask(NamedTuple):
    """All inputs of the measurement of subnetworks, as plain data.

    Attributes:
      kind: `float` or `quantized`, as in `RECORD_FILES`.
      space: the search space.
      weights, batch_stats: weights and batch statistics of the once-for-all network.
      batches: the batches that accuracies are measured with.
      quantizer: the name of that of quantised records, in `subnet_accuracy.QUANTIZERS`.
      fine_tuning_rate, label_smoothing: learning rate and label smoothing of fine-tuning.
    """

    kind: str
    space: NetworkSpace
    weights: Weights
    batch_stats: Params
    batches: subnet_accuracy.Data
    quantizer: str
    fine_tuning_rate: float
    label_smoothing: float


def make_task(kind: str, pipeline: Pipeline, state: ShrinkingState, batches: subnet_accuracy.Data) -> RecordTask:
    """The task of measuring records of a kind with the settings of an experiment."""
    weights, batch_stats = jax.device_get((state.params, state.batch_stats))
    config = pipeline.config
    return RecordTask(
        kind,
        pipeline.space,
        weights,
        batch_stats,
        batches,
        quantizer=config.quantizer,
        fine_tuning_rate=config.records.fine_tuning_rate,
        label_smoothing=config.supernet.label_smoothing,
    )


def make_measure(task: RecordTask) -> Callable[[np.ndarray], float]:
    """The function from a genome, int32[D], to its accuracy; its first call compiles it for all genomes."""
    if task.kind == "float":
        measure = subnet_accuracy.make_float_accuracy(task.space)
    else:
        measure = subnet_accuracy.make_quantized_accuracy(
            task.space,
            clipping=subnet_accuracy.QUANTIZERS[task.quantizer],
            optimizer=optax.sgd(task.fine_tuning_rate, momentum=0.9),
            loss=losses.cross_entropy(task.label_smoothing),
        )
    weights, batch_stats = jax.device_put((task.weights, task.batch_stats))
    return lambda genome: measure(weights, batch_stats, task.batches, jnp.asarray(genome))
