"""Latency on GPUs, from published peak rates and from the speed-ups that FLIQS's Table 3 measured.

A layer takes as long as its multiplications at the peak rate of its format, or its weights and activations at the
memory's rate, whichever is longer: a roofline, and a lower bound. Formats that a part does not have run in the next
wider one that it has, and gain nothing. How much faster int4 is than int8 in practice is less than peak rates say:
Table 3's ResNet-50 gains 1.338 and 1.234 where the rates differ by two.
"""

from typing import NamedTuple

from aqt_like.formats import LayerFormat
from hwcost.cost_model import CostModel, per_format, width_on_device
from hwcost.workload import LayerSpec


class Part(NamedTuple):
    """A GPU.

    Attributes:
      rates: dense multiply-accumulates per second, by bits: of integers, and at 16 of 16-bit floats.
      bandwidth: bytes per second.
      int4_speedup: over int8, as measured on whole networks; None where the rates have to do.
    """

    rates: dict[int, float]
    bandwidth: float
    int4_speedup: float | None = None


def _part(trillion_operations: tuple[float, float, float], gigabytes: float) -> Part:
    """From the data sheet: operations per second at 4, 8 and 16 bits, of which two make a multiply-accumulate."""
    rates = dict(zip((4, 8, 16), trillion_operations, strict=True))
    return Part({bits: rate * 1e12 / 2 for bits, rate in rates.items()}, gigabytes * 1e9)


# NVIDIA's white papers on Turing (2018), on GA102 (2021) and on A100 (2020).
PARTS = {
    "rtx2080ti": _part((430.3, 215.2, 107.6), 616),
    "a6000": _part((619.3, 309.7, 154.8), 768),
    "a100": _part((1248, 624, 312), 1555),
}
# Table 3: INT4 over INT8.
MEASURED = {
    "rtx2080ti": PARTS["rtx2080ti"]._replace(int4_speedup=1.338),
    "a6000": PARTS["a6000"]._replace(int4_speedup=1.234),
}


def runs_as(part: Part, fmt: LayerFormat) -> int:
    """The bits of the format in which the part computes `fmt` (see `width_on_device`).

    Raises:
      ValueError: a format wider than all that it has.
    """
    width = width_on_device(part.rates, fmt)
    if width is None:
        raise ValueError(f"{fmt.name} is wider than the {max(part.rates)} bits that this GPU's tensor cores take")
    return width


def roofline_seconds(part: Part, layer: LayerSpec, bits: int) -> tuple[float, float]:
    """Seconds that a layer's arithmetic and its traffic take at the part's peak rates, at batch size 1."""
    moved = (layer.weights + layer.input_values + layer.output_values) * bits / 8
    return layer.macs / part.rates[bits], moved / part.bandwidth


def latency(part: Part) -> CostModel:
    """Milliseconds; with a measured speed-up, int4 takes int8's time over it."""

    def milliseconds(layer: LayerSpec, fmt: LayerFormat) -> float:
        bits = runs_as(part, fmt)
        if bits == 4 and part.int4_speedup:
            return 1e3 * max(roofline_seconds(part, layer, 8)) / part.int4_speedup
        return 1e3 * max(roofline_seconds(part, layer, bits))

    return CostModel(per_format(milliseconds), "ms")
