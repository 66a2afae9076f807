"""GPU latency: rooflines from published peak rates, and the measured INT4 speed-ups of FLIQS, Table 3.

The latency of a layer is the longer of its arithmetic at the peak rate of its format and its memory traffic at the peak
bandwidth: a roofline, and a lower bound. A format that a GPU lacks runs in the next wider one. In practice int4 gains
less over int8 than the peak rates, which differ by two: ResNet-50 gains 1.338 and 1.234 (FLIQS, Table 3).
"""

from typing import NamedTuple

from aqt_like.formats import LayerFormat
from hwcost.cost_model import CostModel, per_format, width_on_device
from hwcost.workload import LayerSpec


class Part(NamedTuple):
    """A GPU.

    Attributes:
      rates: peak rate of dense MACs per second, by bits; integers, except 16-bit floats at 16.
      bandwidth: peak memory bandwidth, bytes per second.
      int4_speedup: measured speed-up of int4 over int8 on a whole network; if None, int4 uses its peak rate.
    """

    rates: dict[int, float]
    bandwidth: float
    int4_speedup: float | None = None


def _part(trillion_operations: tuple[float, float, float], gigabytes: float) -> Part:
    """A GPU from its data sheet: tera-operations per second at 4, 8 and 16 bits (two operations per MAC), and GB/s."""
    rates = dict(zip((4, 8, 16), trillion_operations, strict=True))
    return Part({bits: rate * 1e12 / 2 for bits, rate in rates.items()}, gigabytes * 1e9)


# NVIDIA's white papers on Turing (2018), on GA102 (2021) and on A100 (2020).
PARTS = {
    "rtx2080ti": _part((430.3, 215.2, 107.6), 616),
    "a6000": _part((619.3, 309.7, 154.8), 768),
    "a100": _part((1248, 624, 312), 1555),
}
# Speed-ups of INT4 over INT8 (FLIQS, Table 3).
MEASURED = {
    "rtx2080ti": PARTS["rtx2080ti"]._replace(int4_speedup=1.338),
    "a6000": PARTS["a6000"]._replace(int4_speedup=1.234),
}


def runs_as(part: Part, fmt: LayerFormat) -> int:
    """The bits in which a GPU computes `fmt` (see `width_on_device`).

    Raises:
      ValueError: the GPU has no format as wide as `fmt`.
    """
    width = width_on_device(part.rates, fmt)
    if width is None:
        raise ValueError(f"{fmt.name} is wider than the {max(part.rates)} bits that this GPU's tensor cores take")
    return width


def roofline_seconds(part: Part, layer: LayerSpec, bits: int) -> tuple[float, float]:
    """Seconds of a layer's arithmetic and of its memory traffic at peak rates, at batch size 1.

    Each run of a layer, as each step of a recurrent cell, moves its weights again.
    """
    moved = layer.runs * (layer.weights + layer.input_values + layer.output_values) * bits / 8
    return layer.macs / part.rates[bits], moved / part.bandwidth


def latency(part: Part) -> CostModel:
    """The latency model of a GPU, in milliseconds; int4 takes the time of int8 over `int4_speedup`, if there is one."""

    def milliseconds(layer: LayerSpec, fmt: LayerFormat) -> float:
        bits = runs_as(part, fmt)
        if bits == 4 and part.int4_speedup:
            return 1e3 * max(roofline_seconds(part, layer, 8)) / part.int4_speedup
        return 1e3 * max(roofline_seconds(part, layer, bits))

    return CostModel(per_format(milliseconds), "ms")
