"""Your own device as a cost model in thirty lines: on this microcontroller, 4 bits save memory but no time.

    python -m launch.fliqs --config=configs/fliqs_digits.py --workdir=runs/microcontroller --config.formats=int_s \\
        --config.baselines="('int4','int8')" --config.cost=examples.microcontroller:LATENCY --config.target=1.1 \\
        --config.target_unit=int8

Its rates are examples of what you would measure: an instruction multiplies two pairs of 8-bit values; narrower weights
are unpacked first; the flash memory delivers two bytes of weights per cycle.
"""

from aqt_like.formats import LayerFormat
from hwcost.cost_model import CostModel, per_format, width_on_device
from hwcost.workload import LayerSpec

CLOCK = 100e6
CYCLES_PER_MAC = {8: 0.5, 16: 1.0}
UNPACKING_CYCLES = 0.25  # for each weight of fewer than 8 bits
FLASH_BYTES_PER_CYCLE = 2


def milliseconds(layer: LayerSpec, fmt: LayerFormat) -> float:
    """Latency of a layer in milliseconds: the longer of arithmetic and flash reads.

    Raises:
      ValueError: the format is wider than the device supports.
    """
    width = width_on_device(CYCLES_PER_MAC, fmt)
    if width is None:
        raise ValueError(f"{layer.path}: {fmt.name} is wider than the {max(CYCLES_PER_MAC)} bits of this device")
    arithmetic = layer.macs * CYCLES_PER_MAC[width]
    weights = layer.runs * layer.weights  # Each run, as each step of a recurrent cell, reads them again.
    if fmt.bits < 8:
        arithmetic += weights * UNPACKING_CYCLES
    flash = weights * fmt.bits / 8 / FLASH_BYTES_PER_CYCLE
    return 1e3 * max(arithmetic, flash) / CLOCK


LATENCY = CostModel(per_format(milliseconds), "ms")
