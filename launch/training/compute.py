"""Arithmetic of a run: the type in which codes are multiplied, and what a platform would round (docs/formats.md)."""

import dataclasses
from typing import Any

import jax
from ml_collections import ConfigDict

from aqt_like.formats import Format
from hwcost.format_plan import FormatPlan

AUTO, FLOAT32, BFLOAT16 = COMPUTE = ("auto", "float32", "bfloat16")
DEFAULT, *_ = PRECISIONS = ("default", "high", "highest")
EXACT_BITS = 8  # significant bits of bfloat16


@dataclasses.dataclass(frozen=True)
class Arithmetic:
    """How the products of a run are computed.

    Attributes:
      operands: type of the codes that layers multiply; sums are float32.
      precision: precision of float32 products on TPUs and GPUs.
      wide: formats whose codes have more significant bits than bfloat16.
      blocks: paths of layers whose scales lie inside the contraction, so that dequantised values are multiplied.
      platform: where the run computes: cpu, gpu or tpu.
    """

    operands: str
    precision: str
    wide: tuple[str, ...]
    blocks: tuple[str, ...]
    platform: str

    def remark(self) -> str:
        """A line about what this platform rounds once more; empty if nothing."""
        if self.platform == "cpu" or self.precision == PRECISIONS[-1] or not (self.wide or self.blocks):
            return ""
        parts = [f"the codes of {', '.join(self.wide)}"] if self.wide else []
        parts += [f"the dequantised values of {', '.join(self.blocks)} (scales in blocks)"] if self.blocks else []
        return (
            f"{' and '.join(parts)} have more than {EXACT_BITS} significant bits, and a {self.platform} rounds them in "
            "products; --config.precision=highest computes them in float32"
        )

    def summary(self, first_exact_step: int) -> dict[str, Any]:
        """What `summary.json` says of it; inputs are codes, and layers exact, from a step of training on."""
        return {
            "operands": self.operands,
            "sums": FLOAT32,
            "precision": self.precision,
            "exact_from_step": first_exact_step,
            "rounded_on_accelerators": {"formats": list(self.wide), "layers": list(self.blocks)},
        }


def choose_arithmetic(config: ConfigDict, plan: FormatPlan) -> Arithmetic:
    """The arithmetic that `config.compute` and `config.precision` ask for on this platform.

    Formats of more than 8 significant bits are multiplied in float32, whatever `config.compute` says.
    """
    platform = jax.default_backend()
    wide = tuple(name for name, fmt in _members(config, plan).items() if fmt.significant_bits > EXACT_BITS)
    operands = config.compute
    if operands == AUTO:
        operands = FLOAT32 if platform == "cpu" else BFLOAT16
    blocks = tuple(path for path, name in plan.granularity_of.items() if name.startswith("per_block"))
    return Arithmetic(FLOAT32 if wide else operands, config.precision, wide, blocks, platform)


def _members(config: ConfigDict, plan: FormatPlan) -> dict[str, Format]:
    """The formats that weights and inputs may have, by name."""
    formats = [fmt for pair in plan.formats for fmt in (pair.weights, pair.inputs)]
    if config.unsigned_inputs:
        formats += [pair.inputs.unsigned_twin for pair in plan.formats]
    return {fmt.name: fmt for fmt in formats}
