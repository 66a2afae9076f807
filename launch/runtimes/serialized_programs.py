"""Serialised programs: a frozen network as one StableHLO module, which `jax.export` reads back on any platform.

The module holds the packed bit streams of codes, as the network's file does, and unpacks them as it runs.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import export, lax

from aqt_like import QuantizedModel, gradients
from aqt_like.formats import parse_format
from aqt_like.frozen_network import FrozenNetwork, Kernel
from aqt_like.layer_calls import Model, entry_of, nested
from aqt_like.packing import Packed
from aqt_like.quantized_layer import Quantizer

PLATFORMS = ("cpu", "cuda", "tpu")


def serialize(
    network: FrozenNetwork,
    model: Model,
    quantizer: Quantizer,
    example: Any,
    prepared: Callable[[jax.Array], jax.Array] = lambda x: x,
    **mode: Any,
) -> bytes:
    """The program `input -> output` of a frozen network, for `jax.export.deserialize`.

    Args:
      network: the network.
      model: its linen module.
      quantizer: see `FrozenNetwork.bind`.
      example: `ShapeDtypeStruct` of the input; its first dimension may be a symbol of `jax.export`.
      prepared: makes the network's input from that of the program.
      **mode: passed to `apply`, as in `train=False`.
    """
    bound, variables = network.bind(model, quantizer)

    def apply(x: jax.Array) -> jax.Array:
        layers = {path: entry_of(bound.collection, path) for path in network.layers}
        for path, layer in network.layers.items():
            if isinstance(layer.weights, Kernel):
                packed = layer.weights.packed
                codes = gradients.Codes(unpacked(packed), layers[path].weights.scale)
                layers[path] = dataclasses.replace(layers[path], weights=codes)
        return QuantizedModel(model, bound.formats, nested(layers), quantizer).apply(variables, prepared(x), **mode)

    return bytes(export.export(jax.jit(apply), platforms=PLATFORMS)(example).serialize())


def unpacked(packed: Packed) -> jax.Array:
    """What `packing.unpack_values` gives, by operations of the program that runs it: float32 of the tensor's shape."""
    fmt, size = parse_format(packed.format), math.prod(packed.shape)
    # Behind a barrier, since compilers would take long to unpack a constant.
    stream = lax.optimization_barrier(jnp.asarray(packed.codes))
    bits = (stream[:, None] >> jnp.arange(8, dtype=jnp.uint8)) & 1
    bits = bits.reshape(-1)[: size * fmt.bits].reshape(size, fmt.bits)
    codes = jnp.sum(bits.astype(jnp.uint32) << jnp.arange(fmt.bits, dtype=jnp.uint32), axis=1, dtype=jnp.uint32)
    if not fmt.scaled:
        return lax.bitcast_convert_type(codes << (32 - fmt.bits), jnp.float32).reshape(packed.shape)
    negative = jnp.zeros(size, bool)
    if fmt.lowest < 0:
        negative, codes = codes >> (fmt.bits - 1) == 1, codes & (2 ** (fmt.bits - 1) - 1)
    magnitudes = codes.astype(jnp.float32) if fmt.is_integer else jnp.asarray(fmt.magnitudes(), jnp.float32)[codes]
    values = jnp.where(negative, -magnitudes, magnitudes) * 2.0**packed.exponent
    return values.reshape(packed.shape)
