"""FPGA area of a network's multipliers, in look-up tables (LUTs) (FLIQS, Table 2 and A.10).

The paper reports the area of one residual block of ResNet-18 (two 3×3 convolutions and a 1×1 convolution) on an
UltraScale+ FPGA. A layer is priced at the area of the block with all layers in its format; the mean over layers
reproduces the published areas of mixed blocks within 0.2 %. For other networks, the mean over layers stands for the
area of such a block.
"""

import math

from aqt_like.formats import LayerFormat
from hwcost.cost_model import CostModel, per_format
from hwcost.workload import LayerSpec

# Thousands of LUTs by bits (FLIQS, Table 2).
PUBLISHED = {4: 42.8, 5: 44.8, 6: 48.3, 7: 54.9, 8: 67.6}


def thousand_luts(bits: int) -> float:
    """Area in thousands of LUTs: published for 4 to 8 bits; for 2 and 3 bits, from a curve fitted to these."""
    return PUBLISHED.get(bits, 40.724 + 26.848 * math.exp(0.634 * (bits - 8)))


def _area(layer: LayerSpec, fmt: LayerFormat) -> float:
    if not fmt.is_integer or not 2 <= fmt.bits <= 8:
        raise ValueError(f"{layer.path}: the published areas are for integers up to 8 bits, {fmt.name} is none")
    return thousand_luts(fmt.bits)


AREA = CostModel(per_format(_area), "thousand LUTs", total="mean")
