"""Number formats and fake quantisation for JAX and Flax.

`__all__` lists the public names, as in `quantize(x, "e4m3", clip=480.0)`, `quantize_model` and `explain("e4m3")`.
"""

from aqt_like.explain import explain
from aqt_like.formats import FORMAT_SPACES, Format, UnknownFormatError, format_space, parse_format, parse_layer_format
from aqt_like.freezing import freeze
from aqt_like.frozen_network import FrozenNetwork, load_network
from aqt_like.granularity import quantize_blocks
from aqt_like.numerics import quantize
from aqt_like.quantized_model import QuantizedModel, quantize_model

__all__ = [
    "FORMAT_SPACES",
    "Format",
    "FrozenNetwork",
    "QuantizedModel",
    "UnknownFormatError",
    "explain",
    "format_space",
    "freeze",
    "load_network",
    "parse_format",
    "parse_layer_format",
    "quantize",
    "quantize_blocks",
    "quantize_model",
]
