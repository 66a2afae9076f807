"""Accuracy predictors: networks of three hidden layers of 400 units over one-hot features of genomes (APQ, §3.2).

The float predictor sees the architecture only. `transferred` adds inputs for the bits with zero weights, which leaves
the function unchanged, and fine-tuning on few quantised records follows (APQ, Figure 4; Algorithm 1, line 3).
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from scipy.stats import kendalltau

HIDDEN, LAYERS = 400, 3


class Dense(NamedTuple):
    """Parameters of a dense layer: `kernel` float32[inputs, outputs], `bias` float32[outputs]."""

    kernel: jax.Array
    bias: jax.Array


class Predictor(NamedTuple):
    """Layers whose output is a standardised accuracy, and the mean and standard deviation of accuracies, float32[]."""

    layers: tuple[Dense, ...]
    mean: jax.Array
    deviation: jax.Array


@functools.partial(jax.jit, static_argnames=("features", "hidden"))
def init(
    features: int, accuracies: ArrayLike, key: jax.Array, *, hidden: int = HIDDEN, count: ArrayLike | None = None
) -> Predictor:
    """An untrained predictor of `features` inputs, standardised by the mean and deviation of float[N] accuracies.

    Of these only the first `count` are taken, which may be traced.
    """
    sizes = (features, *[hidden] * LAYERS, 1)
    keys = jax.random.split(key, len(sizes) - 1)
    layers = tuple(
        Dense(jax.random.normal(key, (ins, outs)) * np.sqrt(2 / ins), jnp.zeros(outs))
        for key, ins, outs in zip(keys, sizes, sizes[1:], strict=False)
    )
    accuracies = jnp.asarray(accuracies, jnp.float32)
    known = None if count is None else jnp.arange(len(accuracies)) < count
    deviation = jnp.maximum(jnp.std(accuracies, where=known), 1e-6)
    return Predictor(layers, jnp.mean(accuracies, where=known), deviation)


@jax.jit
def predict(predictor: Predictor, features: jax.Array) -> jax.Array:
    """Predicted accuracies, float32[...], from features, float32[..., F]."""
    return predictor.mean + predictor.deviation * _standardised(predictor.layers, features)


def _standardised(layers: Sequence[Dense], x: jax.Array) -> jax.Array:
    *hidden, last = layers
    for layer in hidden:
        x = jax.nn.relu(x @ layer.kernel + layer.bias)
    return (x @ last.kernel + last.bias)[..., 0]


def transferred(predictor: Predictor, features: int) -> Predictor:
    """The same function of `features` inputs: the added last ones have zero weights (APQ, §3.2, predictor transfer).

    Raises:
      ValueError: the predictor has more inputs already.
    """
    first, *rest = predictor.layers
    new = features - first.kernel.shape[0]
    if new < 0:
        raise ValueError(f"{features} features: the predictor has {first.kernel.shape[0]} already")
    return predictor._replace(layers=(Dense(jnp.pad(first.kernel, ((0, new), (0, 0))), first.bias), *rest))


@functools.partial(jax.jit, static_argnames=("steps", "batch_size"))
def fit(
    predictor: Predictor,
    features: jax.Array,
    accuracies: jax.Array,
    key: jax.Array,
    *,
    count: ArrayLike | None = None,
    anchor: Predictor | None = None,
    steps: int = 2000,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    weight_decay: float = 3.0,
) -> Predictor:
    """The predictor trained on mean squared error by AdamW with a cosine schedule, in one compiled call.

    Args:
      predictor: initial weights.
      features: float32[N, F].
      accuracies: float32[N].
      key: PRNG key of the random batches.
      count: number of the first records that are learnt from, 1…N, by default all; it may be traced, so one compilation
        serves all numbers. The result is that of these records alone, up to rounding.
      anchor: the predictor whose weights are the target of weight decay, instead of zero. Decay towards zero would
        undo the transfer.
      steps, batch_size, learning_rate, weight_decay: of the training.
    """
    rows, count = min(batch_size, len(features)), len(features) if count is None else count
    in_batch = jnp.arange(rows) < count  # A batch is of no more records than there are.
    targets = (accuracies - predictor.mean) / predictor.deviation
    optimizer = optax.adamw(optax.cosine_decay_schedule(learning_rate, steps), weight_decay=weight_decay)
    origin = jax.tree.map(jnp.zeros_like, predictor.layers) if anchor is None else anchor.layers

    def layers_at(change: tuple[Dense, ...]) -> tuple[Dense, ...]:
        return jax.tree.map(jnp.add, origin, change)

    def step(carry: tuple, key: jax.Array) -> tuple[tuple, None]:
        change, opt_state = carry
        chosen = jax.random.randint(key, (rows,), 0, count)

        def loss(change: tuple[Dense, ...]) -> jax.Array:
            errors = jnp.square(_standardised(layers_at(change), features[chosen]) - targets[chosen])
            return jnp.mean(errors, where=in_batch)

        updates, opt_state = optimizer.update(jax.grad(loss)(change), opt_state, change)
        return (optax.apply_updates(change, updates), opt_state), None

    change = jax.tree.map(jnp.subtract, predictor.layers, origin)
    (change, _), _ = jax.lax.scan(step, (change, optimizer.init(change)), jax.random.split(key, steps))
    return predictor._replace(layers=layers_at(change))


class Agreement(NamedTuple):
    """Agreement of predicted with measured accuracies.

    Attributes:
      pairwise: share of correctly ordered pairs among those that differ (pairwise accuracy: APQ, §5.3 and Figure 7).
      kendall: Kendall's rank correlation τ.
      error: root mean square error.
    """

    pairwise: float
    kendall: float
    error: float


def agreement(predicted: ArrayLike, true: ArrayLike) -> Agreement:
    """Agreement of predictions, float[N], with accuracies, float[N]."""
    predicted, true = np.asarray(predicted, np.float64), np.asarray(true, np.float64)
    i, j = np.triu_indices(len(true), k=1)
    differ = true[i] != true[j]
    ordered = np.sign(predicted[i] - predicted[j]) == np.sign(true[i] - true[j])
    return Agreement(
        pairwise=float(ordered[differ].mean()) if differ.any() else float("nan"),
        kendall=float(kendalltau(predicted, true).statistic),
        error=float(np.sqrt(np.mean(np.square(predicted - true)))),
    )
