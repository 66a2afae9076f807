"""Number formats and fake quantisation for JAX and Flax. At a prompt: `quantize(x, "e4m3", clip=480.0)`, `explain`."""

from aqt_like.explain import explain
from aqt_like.granularity import quantize_blocks
from aqt_like.numerics import quantize
from aqt_like.quantized_model import QuantizedModel, quantize_model

__all__ = ["QuantizedModel", "explain", "quantize", "quantize_blocks", "quantize_model"]
