"""Number formats and fake quantisation for JAX and Flax. At a prompt: `quantize(x, "e4m3", clip=480.0)`, `explain`."""

from aqt_like.explain import explain
from aqt_like.granularity import quantize_blocks
from aqt_like.numerics import quantize

__all__ = ["explain", "quantize", "quantize_blocks"]
