"""The costs that a search may be given by name."""

from hwcost import analytic, bitfusion, fpga, gpu
from hwcost.cost_model import CostModel

COSTS: dict[str, CostModel] = {
    "bit_operations": analytic.BIT_OPERATIONS,
    "weight_bytes": analytic.WEIGHT_BYTES,
    "peak_activation_bytes": analytic.PEAK_ACTIVATION_BYTES,
    **{f"bitfusion_{name}": model for name, model in bitfusion.cost_models().items()},
    "fpga_area": fpga.AREA,
    **{f"{name}_roofline": gpu.latency(part) for name, part in gpu.PARTS.items()},
    **{f"{name}_latency": gpu.latency(part) for name, part in gpu.MEASURED.items()},
}
