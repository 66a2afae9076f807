"""Depthwise and pointwise convolutions that are fast on CPUs, where XLA's, and above all their gradients, are not.

Here a depthwise convolution is a sum of shifted images times a tap each, which vectorises over channels: ten times as
fast forward and back. A pointwise one is a matrix product: three times as fast. On other devices XLA's own convolution
is used, and it is what tracing finds either way.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

Padding = tuple[tuple[int, int], ...]
Convolution = Callable[[jax.Array, jax.Array], jax.Array]

TYPES = {jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16)}
LAYOUT = jax.lax.conv_dimension_numbers((1, 1, 1, 1), (1, 1, 1, 1), ("NHWC", "HWIO", "NHWC"))


def conv_general_dilated(
    x: jax.Array,
    kernel: jax.Array,
    window_strides: Sequence[int],
    padding: Any,
    *,
    dimension_numbers: Any = None,
    **settings: Any,
) -> jax.Array:
    """`jax.lax.conv_general_dilated`, for `nn.Conv(conv_general_dilated=…)`, at the types that it is called with.

    On CPUs sums are float32's, whatever the types, and so whatever the `precision`; the gradient's too. XLA's own
    convolution computes what is neither depthwise nor pointwise, or of other types than `TYPES`. Gradients are those of
    reverse mode alone (`jax.grad`, `jax.vjp`); `jax.jvp` is a TypeError.

    Args:
      x: [B, H, W, C].
      kernel: [KH, KW, C / groups, C'].
      window_strides: along H and W.
      padding: explicit, or as `jax.lax.conv_general_dilated` takes it.
      dimension_numbers: as it takes them; other layouts than the above are left to it.
      **settings: as it takes them.

    Raises:
      TypeError: as it does, for operands of two types among others.
      ValueError: as it does.
    """
    native = partial(
        jax.lax.conv_general_dilated,
        window_strides=window_strides,
        padding=padding,
        dimension_numbers=dimension_numbers,
        **settings,
    )
    result = jax.eval_shape(native, x, kernel)
    fast = None
    if result.size and {x.dtype, kernel.dtype, result.dtype} <= TYPES:
        fast = _fast(x, kernel, tuple(window_strides), padding, dimension_numbers, settings)
    if fast is None:
        return native(x, kernel)

    def on_cpu(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return fast(x.astype(jnp.float32), kernel.astype(jnp.float32)).astype(result.dtype)

    return jax.lax.platform_dependent(x, kernel, cpu=on_cpu, default=native)


def _fast(
    x: jax.Array,
    kernel: jax.Array,
    strides: tuple[int, ...],
    padding: Any,
    dimension_numbers: Any,
    settings: Mapping[str, Any],
) -> Convolution | None:
    """What computes a convolution in float32, or None if there is nothing faster than XLA's."""
    groups = settings.get("feature_group_count", 1)
    dilations = {*(settings.get("lhs_dilation") or (1,)), *(settings.get("rhs_dilation") or (1,))}
    if x.ndim != 4 or jax.lax.conv_dimension_numbers(x.shape, kernel.shape, dimension_numbers) != LAYOUT:
        return None
    if dilations != {1} or settings.get("batch_group_count", 1) != 1 or settings.get("out_sharding") is not None:
        return None
    if isinstance(padding, str):
        return None
    pads = tuple(tuple(p) for p in padding)
    if kernel.shape[2:] == (1, groups) == (1, x.shape[-1]):
        return partial(_shifted, strides=strides, padding=pads)
    if kernel.shape[:2] == strides == (1, 1) and groups == 1 and pads == ((0, 0), (0, 0)):
        return _product
    return None


def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return (x.reshape(-1, x.shape[-1]) @ kernel[0, 0]).reshape(*x.shape[:-1], kernel.shape[-1])


def _shifted(x: jax.Array, kernel: jax.Array, *, strides: tuple[int, ...], padding: Padding) -> jax.Array:
    return _depthwise(x, kernel, strides, padding)


def _padded(x: jax.Array, padding: Padding) -> jax.Array:
    """Negative padding crops."""
    return jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *((low, high, 0) for low, high in padding), (0, 0, 0)])


def _window(padded: jax.Array, tap: tuple[int, int], size: Sequence[int], strides: Sequence[int]) -> jax.Array:
    """What a tap of the kernel meets: [..., H', W', C] of [..., H, W, C]."""
    rows, columns = (
        slice(first, first + (count - 1) * stride + 1, stride)
        for first, count, stride in zip(tap, size, strides, strict=True)
    )
    return padded[..., rows, columns, :]


def _taps(kernel: jax.Array) -> list[tuple[int, int]]:
    return [(row, column) for row in range(kernel.shape[0]) for column in range(kernel.shape[1])]


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _depthwise(x: jax.Array, kernel: jax.Array, strides: tuple[int, ...], padding: Padding) -> jax.Array:
    padded = _padded(x, padding)
    size = [
        (length - taps) // stride + 1
        for length, taps, stride in zip(padded.shape[1:3], kernel.shape[:2], strides, strict=True)
    ]
    terms = (_window(padded, tap, size, strides) * kernel[tap[0], tap[1], 0] for tap in _taps(kernel))
    return sum(terms, start=jnp.zeros((), x.dtype))


def _forward(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, ...], padding: Padding
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _depthwise(x, kernel, strides, padding), (x, kernel)


def _backward(
    strides: tuple[int, ...], padding: Padding, saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    # To the input: the same sum over the flipped kernel, with the strides as gaps between the gradient's values.
    gaps = [(0, 0, 0), *((0, 0, stride - 1) for stride in strides), (0, 0, 0)]
    spread = jax.lax.pad(gradient, jnp.zeros((), gradient.dtype), gaps)
    around = tuple(
        (taps - 1 - low, length + low - spread_length)
        for taps, (low, _), length, spread_length in zip(
            kernel.shape[:2], padding, x.shape[1:3], spread.shape[1:3], strict=True
        )
    )
    to_x = _depthwise(spread, kernel[::-1, ::-1], (1, 1), around)

    # To the kernel: example by example, so that what is summed stays in the nearest cache; all taps in one reduction.
    padded, taps = _padded(x, padding), _taps(kernel)
    nothing = [jnp.zeros((), kernel.dtype)] * len(taps)

    def add(total: jax.Array, example: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        image, seen = example
        products = [_window(image, tap, seen.shape[:2], strides) * seen for tap in taps]
        sums = jax.lax.reduce(products, nothing, lambda *pair: list(map(jnp.add, *pair)), (0, 1))
        return total + jnp.stack(sums), None

    to_kernel, _ = jax.lax.scan(add, jnp.zeros((len(taps), kernel.shape[-1]), kernel.dtype), (padded, gradient))
    return to_x, to_kernel.reshape(kernel.shape)


_depthwise.defvjp(_forward, _backward)
