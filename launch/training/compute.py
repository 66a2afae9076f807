"""Arithmetic of a run: the types of codes and of activations, and what a platform would round (docs/formats.md)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from aqt_like.formats import Format
from aqt_like.interception import Quantizer, apply_quantized
from fliqs_jax.models.calling import CalledModel
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
      activations: type in which activations are stored between layers.
      wide: formats whose codes have more significant bits than bfloat16.
      blocks: paths of layers whose scales lie inside the contraction, so that dequantised values are multiplied.
      platform: where the run computes: cpu, gpu or tpu.
    """

    operands: str
    precision: str
    activations: str
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
            "activations": self.activations,
            "exact_from_step": first_exact_step,
            "rounded_on_accelerators": {"formats": list(self.wide), "layers": list(self.blocks)},
        }


def choose_arithmetic(config: ConfigDict, plan: FormatPlan) -> Arithmetic:
    """The arithmetic that `config.compute`, `config.precision` and `config.activations` ask for on this platform.

    Formats of more than 8 significant bits are multiplied in float32, whatever `config.compute` says.
    """
    platform = jax.default_backend()
    wide = tuple(name for name, fmt in _members(config, plan).items() if fmt.significant_bits > EXACT_BITS)
    operands = config.compute
    if operands == AUTO:
        operands = FLOAT32 if platform == "cpu" else BFLOAT16
    blocks = tuple(path for path, name in plan.granularity_of.items() if name.startswith("per_block"))
    operands = FLOAT32 if wide else operands
    return Arithmetic(operands, config.precision, config.activations, wide, blocks, platform)


def check_activations(model: CalledModel, quantizer: Quantizer, inputs: Any) -> None:
    """Checks that a model takes activations as the quantiser stores them, by tracing a training step on inputs.

    Raises:
      ValueError: it does not; the message names the setting.
    """
    if (name := jnp.dtype(quantizer.activations).name) == FLOAT32:
        return

    def train(variables: dict[str, Any], x: Any) -> Any:
        more: dict[str, Any] = {"rngs": jax.random.key(0), "mutable": model.updated, "quantizer": quantizer}
        return apply_quantized(model, variables, x, train=True, **more)[1]

    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x), inputs)
    try:
        found = jax.eval_shape(train, variables, inputs)
    except (TypeError, ValueError) as error:
        why = " ".join(str(error).split())[:300]
    else:
        kinds = {key: (jax.tree.map(jax.typeof, found[key]), jax.tree.map(jax.typeof, variables[key])) for key in found}
        if not (changed := [key for key, (after, before) in kinds.items() if after != before]):
            return
        why = f"{', '.join(changed)} would be of another type after a step"
    raise ValueError(
        f"activations={name!r}: expected {FLOAT32!r}, since the model does not take results of layers in another type: "
        f"{why}"
    )


def _members(config: ConfigDict, plan: FormatPlan) -> dict[str, Format]:
    """The formats that weights and inputs may have, by name."""
    formats = [fmt for pair in plan.formats for fmt in (pair.weights, pair.inputs)]
    if config.unsigned_inputs:
        formats += [pair.inputs.unsigned_twin for pair in plan.formats]
    return {fmt.name: fmt for fmt in formats}
