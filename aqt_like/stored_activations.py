"""Activations stored in bfloat16 between layers, in half the memory, which training on TPUs is bound by.

What a layer, a normalisation or an embedding gives is rounded to bfloat16; what it computes inside, codes, sums and
statistics, stays float32, and so do parameters, the inputs of the model and its logits. What the model computes between
layers, such as activation functions, sums and pooling, is of the type that JAX promotes its operands to.

Compilers leave out casts to bfloat16 and back, and so keep more of a sum than another program does. Layers therefore
round what they get as well, so that codes are the same in all programs.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from aqt_like.layer_calls import is_layer_call

TYPES = ("float32", "bfloat16")
STORING = (nn.BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.InstanceNorm, nn.Embed)
"""Modules whose results are stored, beside the layers that can be quantised."""


def checked(name: Any) -> str:
    """The name of a type of activations, if it is one; raises ValueError if not."""
    if name not in TYPES:
        raise ValueError(f"activations {name!r}: expected one of {', '.join(TYPES)}")
    return name


class Storage:
    """What layers get and give in one call of a model: float32, which changes nothing, or bfloat16.

    Args:
      dtype: the type.
    """

    def __init__(self, dtype: Any) -> None:
        self._rounds = jnp.dtype(dtype) == jnp.bfloat16
        self._given: list[tuple[jax.Array, jax.Array]] = []

    def taken(self, arguments: Any, context: nn.module.InterceptorContext) -> Any:
        """The arguments of an intercepted call as a layer gets them, any structure."""
        if not self._is_of_layer(context):
            return arguments
        return jax.tree.map(lambda x: _rounded(x) if getattr(x, "dtype", None) == jnp.bfloat16 else x, arguments)

    def given(self, y: Any, context: nn.module.InterceptorContext) -> Any:
        """The result of an intercepted call as others get it."""
        if not self._is_of_layer(context) or y.dtype != jnp.float32:
            return y
        self._given.append((rounded := _rounded(y), y))
        return rounded

    def result(self, result: Any) -> Any:
        """The result of the model in float32; where it is that of a layer, as it was before it was rounded."""

        def exact(leaf: Any) -> Any:
            if getattr(leaf, "dtype", None) != jnp.bfloat16:
                return leaf
            return next((y for rounded, y in self._given if rounded is leaf), leaf.astype(jnp.float32))

        return jax.tree.map(exact, result) if self._rounds else result

    def _is_of_layer(self, context: nn.module.InterceptorContext) -> bool:
        """Whether a call is of a layer, and activations are rounded."""
        is_storing = isinstance(context.module, STORING) and context.method_name == "__call__"
        return self._rounds and (is_storing or is_layer_call(context))


def _rounded(x: jax.Array) -> jax.Array:
    """The nearest values of bfloat16, in that type; compilers leave this rounding in place."""
    return lax.reduce_precision(x.astype(jnp.float32), exponent_bits=8, mantissa_bits=7).astype(jnp.bfloat16)
