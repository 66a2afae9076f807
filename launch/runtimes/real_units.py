"""Frozen networks in real units: values instead of codes, for graphs whose nodes have scales of their own."""

from typing import Any

import jax.numpy as jnp

from aqt_like import QuantizedModel, gradients
from aqt_like.frozen_network import FrozenNetwork, Kernel
from aqt_like.layer_calls import Model, entry_of, nested
from aqt_like.quantized_layer import FrozenLayer, Quantizer
from launch.runtimes.onnx_builder import ExportError


def bind(network: FrozenNetwork, model: Model, quantizer: Quantizer) -> tuple[QuantizedModel, dict[str, Any]]:
    """The network with all scales 1: weights are the values of their codes, ranges of inputs are those of the values.

    Grids of inputs keep the step of their codes, so what is exported of them is to be made by other `Operands`.

    Raises:
      ExportError: a layer has no kernel.
    """
    for path, layer in network.layers.items():
        if not isinstance(layer.weights, Kernel):
            raise ExportError(
                f"{path}: a product of two activations, with scales that depend on the input: expected a layer with "
                "weights; --to=onnx --form=exact exports it"
            )
    bound, variables = network.bind(model, quantizer)
    layers = {}
    for path in network.layers:
        entry = entry_of(bound.collection, path)
        values = entry.weights.values * entry.weights.scale
        inputs = entry.inputs._replace(
            largest=entry.inputs.largest * entry.input_scale, lowest=entry.inputs.lowest * entry.input_scale
        )
        layers[path] = FrozenLayer(gradients.Codes(values, jnp.ones(())), inputs, jnp.ones(()), entry.kernel)
    return QuantizedModel(model, bound.formats, nested(layers), quantizer), variables
