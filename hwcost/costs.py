"""The cost models that a config can select by name."""

import pathlib

from hwcost import analytic, bitfusion, fpga, gpu, measured_tables, registry
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


def find_cost(name: str) -> CostModel:
    """The cost model of a name: one of `COSTS`, a table's file (or `interpolated:FILE`), or `package.module:name`.

    Raises:
      ValueError: the name is unknown, the table cannot be read, or the import is no `CostModel`.
    """
    if name.endswith((".json", ".csv")):
        file = name.removeprefix("interpolated:")
        return measured_tables.read(pathlib.Path(file)).cost_model(interpolated=file != name)
    model = registry.lookup("cost", name, COSTS)
    if not isinstance(model, CostModel):
        raise ValueError(f"cost {name!r}: expected a hwcost.cost_model.CostModel, got {type(model).__name__}")
    return model
