"""Format probes: what the rounding errors of all formats of a layer do to the loss, from one backward pass.

The change of the loss, to first order, by replacing an operand x by Q_k(x), where Q_k is quantisation to format k, is
the inner product of the loss's slope at x and Q_k(x) − x. A probe gives the squares of these products as the gradient
of an array of zeros, so that any transformation of a model that knows gradients knows probes, loops included.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from aqt_like.formats import FormatTable


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("weights", "inputs", "input_clips", "of_weights", "of_inputs", "active"),
    meta_fields=("examples",),
)
@dataclasses.dataclass(frozen=True)
class FormatProbe:
    """The K formats that a layer is probed with; `LayerFormats` holds it.

    Attributes:
      weights, inputs: the formats, leaves `[K]`.
      input_clips: float32[K], clip thresholds of the input.
      of_weights, of_inputs: float32[K], zeros. The gradient of the loss with respect to them are squared products of
        slope and rounding errors: of the kernel, and the sum over examples of those of the input. Calls of a layer add
        up, as if they were independent.
      active: bool scalar; nothing is measured where it is False, and gradients are 0.
      examples: number of examples, along the first axis of the input, that are measured and stand for all; static.
    """

    weights: FormatTable
    inputs: FormatTable
    input_clips: jax.Array
    of_weights: jax.Array
    of_inputs: jax.Array
    active: jax.Array
    examples: int


def fisher_scores(squares: jax.Array, batch_size: int) -> jax.Array:
    """Half the expected square of the change of one example's loss, of weights and inputs together: float32[L, K].

    Args:
      squares: float32[L, 2, K], gradients of the zeros of weights and of inputs.
      batch_size: number of examples that the loss is a mean over: its slopes are that much smaller than an example's.
    """
    return batch_size / 2 * jnp.sum(squares, axis=1)


Quantize = Callable[[jax.Array, FormatTable, jax.Array], jax.Array]
"""`(x, row, clip) -> values`, dequantised."""


def probe_input(
    values: jax.Array, scale: jax.Array, x: jax.Array, probe: FormatProbe, clips: jax.Array, quantize: Quantize
) -> jax.Array:
    """`values`, which stand for `x` in units of `scale`, with the scores of inputs as the gradient of zeros.

    Args:
      values: float32[B, …], codes or dequantised values.
      scale: float32 scalar.
      x: what was quantised to them.
      probe: the formats.
      clips: float32[K], their clip thresholds.
      quantize: quantisation.
    """
    count = x.shape[0] if x.ndim > 1 else 1  # without a batch there is one example
    every = max(count // probe.examples, 1)

    def some(x: jax.Array) -> jax.Array:
        """A row for each of a few examples."""
        return x.reshape(count, -1)[::every]

    def scores(saved: Any, slope: jax.Array) -> jax.Array:
        x, scale, table, clips, active = saved

        def one(row: FormatTable, clip: jax.Array) -> jax.Array:
            changes = jnp.sum(some(slope) / scale * (quantize(x, row, clip) - x), axis=1)
            return count * jnp.mean(jnp.square(changes))

        return _when(active, jax.vmap(one), table, clips)

    saved = some(x.astype(jnp.float32)), scale, probe.inputs, clips, probe.active
    return _probed(scores, values, jax.tree.map(lax.stop_gradient, saved), probe.of_inputs)


def probe_kernel(
    values: jax.Array,
    scale: jax.Array,
    kernel: jax.Array,
    probe: FormatProbe,
    clip_of: Callable[[jax.Array, FormatTable], jax.Array],
    quantize: Quantize,
) -> jax.Array:
    """The same for a kernel, with output channels last, whose `clip_of` gives its clip threshold for a format."""

    def scores(saved: Any, slope: jax.Array) -> jax.Array:
        kernel, scale, table, active = saved

        def one(row: FormatTable) -> jax.Array:
            error = quantize(kernel, row, jnp.asarray(clip_of(kernel, row))) - kernel
            return jnp.square(jnp.sum(slope / scale * error))

        return _when(active, jax.vmap(one), table)

    saved = kernel.astype(jnp.float32), scale, probe.weights, probe.active
    return _probed(scores, values, jax.tree.map(lax.stop_gradient, saved), probe.of_weights)


def _when(active: jax.Array, measure: Callable[..., jax.Array], table: FormatTable, *more: jax.Array) -> jax.Array:
    return lax.cond(active, measure, lambda table, *_: jnp.zeros(table.bits.shape), table, *more)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _probed(scores: Callable[..., jax.Array], values: jax.Array, saved: Any, zeros: jax.Array) -> jax.Array:
    """Returns `values`; with slope g of the loss, the gradient of `zeros` is `scores(saved, g)`."""
    del scores, saved, zeros
    return values


def _probed_forward(
    scores: Callable[..., jax.Array], values: jax.Array, saved: Any, zeros: jax.Array
) -> tuple[jax.Array, Any]:
    del scores, zeros
    return values, saved


def _probed_backward(scores: Callable[..., jax.Array], saved: Any, slope: jax.Array) -> tuple[Any, None, jax.Array]:
    return slope, None, scores(saved, slope)


_probed.defvjp(_probed_forward, _probed_backward)
