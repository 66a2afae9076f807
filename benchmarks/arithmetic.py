"""Error of a layer's output against float64: dequantised values multiplied, or codes multiplied and scaled afterwards.

    python -m benchmarks.arithmetic        (ten seconds)

A 3×3 convolution 64 → 64 and a dense layer 512 → 128 have random weights, and normal or rectified inputs (as after a
ReLU, with unsigned integers). Weights are clipped per output channel, inputs per tensor, at the multiples of
`aqt_like.clip_multiples`. The truth is the product of codes × scales in float64. All formats run through one compiled
function per layer and way. Writes results/arithmetic.json beside this file. The ways:

* dequantised: codes × scales are rounded to float32 and multiplied.
* dequantised, bf16: they are rounded to bfloat16 before, as TPUs round the operands of float32 products by default.
* codes: codes are multiplied in float32, and the result is scaled.
* codes, bf16: the same with codes in bfloat16 and sums in float32.

On a TPU or GPU the ways in float32 are what the device makes of float32 by default.
"""

import functools
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from aqt_like import clip_multiples, gradients, interception
from aqt_like.formats import FORMAT_SPACES, Format, FormatTable, format_table, parse_format

RESULTS = pathlib.Path(__file__).parent / "results" / "arithmetic.json"
OTHERS = ("int2", "int3", "e7m0", "int12")  # few codes, the widest range, and more significant bits than bfloat16 has
QUANTIZATION = "quantisation itself"

LayerErrors = dict[str, dict[str, dict[str, float]]]  # by kind of input, format and way


class OneLayer(nn.Module):
    """The model of one layer, at the path `layer`."""

    layer: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """The layer's output."""
        return self.layer(name="layer")(x)


# Layer, shape of its input, shape of its kernel.
LAYERS = {
    "convolution": (functools.partial(nn.Conv, 64, (3, 3), use_bias=False), (8, 14, 14, 64), (3, 3, 64, 64)),
    "dense": (functools.partial(nn.Dense, 128, use_bias=False), (256, 512), (512, 128)),
}


def dequantized(x: jax.Array, row: FormatTable, clip: jax.Array) -> jax.Array:
    """The fake-quantised `x`; as a plain function it has no codes, and layers multiply its values."""
    return gradients.straight_through(x, row, clip)


def dequantized_in_bf16(x: jax.Array, row: FormatTable, clip: jax.Array) -> jax.Array:
    """The fake-quantised `x`, rounded to bfloat16; compilers leave out a cast to bfloat16 and back, but not this."""
    return lax.reduce_precision(dequantized(x, row, clip), exponent_bits=8, mantissa_bits=7)


WAYS = {
    "dequantised": interception.Quantizer(dequantized),
    "dequantised, bf16": interception.Quantizer(dequantized_in_bf16),
    "codes": interception.Quantizer(),
    "codes, bf16": interception.Quantizer(operands=jnp.bfloat16),
}


def in_float64(x: Any, kernel: Any) -> np.ndarray:
    """The layer's output in float64: a product of matrices, or a convolution of odd size that keeps the image's."""
    x, kernel = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
    if kernel.ndim == 2:
        return x @ kernel
    rows, columns = kernel.shape[:2]
    padded = np.pad(x, ((0, 0), (rows // 2,) * 2, (columns // 2,) * 2, (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (rows, columns), axis=(1, 2))
    return np.tensordot(windows, kernel, ([4, 5, 3], [0, 1, 2]))


def relative_error(y: Any, truth: np.ndarray) -> float:
    """The L2 norm of the error of `y` relative to that of the truth."""
    return float(np.linalg.norm(np.asarray(y, np.float64) - truth) / np.linalg.norm(truth))


def row_of(fmt: Format) -> FormatTable:
    """The format with its stored clip multiple for Gaussian data, or 7 for int12 and uint12, which have none."""
    (multiple,) = (7.0,) if fmt.name.endswith("int12") else clip_multiples.precomputed_multiples([fmt])
    return format_table([fmt], [multiple]).row(0)


def measure(
    layer: Callable[..., nn.Module], shape: Sequence[int], kernel_shape: Sequence[int], names: Sequence[str]
) -> LayerErrors:
    """Relative errors of the layer's output with the formats of these names.

    The error of the quantisation itself is that of codes × scales against what was quantised, both in float64.
    """
    model, rng = OneLayer(layer), np.random.default_rng(0)
    normal, kernel = (rng.standard_normal(size).astype(np.float32) for size in (shape, kernel_shape))

    def compiled(quantizer: interception.Quantizer) -> Callable[[Any, interception.LayerFormats], jax.Array]:
        def run(x: jax.Array, rows: interception.LayerFormats) -> jax.Array:
            variables = {"params": {"layer": {"kernel": kernel}}, "formats": {"layer": rows}}
            return interception.apply_quantized(model, variables, x, quantizer=quantizer)

        return jax.jit(run)

    @jax.jit
    def codes(x: jax.Array, rows: interception.LayerFormats) -> list[gradients.Codes]:
        weight_clip = interception.DEFAULT_QUANTIZER.weight_clip(jnp.asarray(kernel), rows.weights)
        quantized = (x, rows.inputs, rows.input_clip), (jnp.asarray(kernel), rows.weights, weight_clip)
        return [gradients.straight_through.codes(*each) for each in quantized]

    ways = {name: compiled(quantizer) for name, quantizer in WAYS.items()}
    found: LayerErrors = {}
    for kind, x in {"normal": normal, "rectified": np.maximum(normal, 0)}.items():
        unquantized, root_mean_square = in_float64(x, kernel), np.sqrt(np.mean(np.square(x)))
        found[kind] = {}
        for name in names:
            fmt = parse_format(name)
            inputs = row_of(fmt.unsigned_twin if kind == "rectified" else fmt)
            rows = interception.LayerFormats(row_of(fmt), inputs, inputs.clip_multiple * root_mean_square)
            factors = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), codes(x, rows))
            truth = in_float64(*(values * scale for values, scale in factors))
            errors = {way: relative_error(run(x, rows), truth) for way, run in ways.items()}
            found[kind][name] = errors | {QUANTIZATION: relative_error(truth, unquantized)}
    return found


def _scientific(value: float) -> str:
    """A number such as 4.1e-7, with one digit after the point."""
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def markdown(layers: Mapping[str, LayerErrors]) -> str:
    """Table of docs/formats.md in Markdown: the largest error over formats, layers and inputs.

    Of the quantisation itself, which differs between the formats of a space, it has the smallest and the largest error.
    The format bf16, which all spaces have, has a line of its own.
    """
    groups = {f"`{space}`": [name for name in names if name != "bf16"] for space, names in FORMAT_SPACES.items()}
    groups |= {f"`{name}`": [name] for name in ("bf16", *OTHERS)}
    lines = ["| formats | " + " | ".join([*WAYS, QUANTIZATION]) + " |", "|---" * (len(WAYS) + 2) + "|"]
    for group, names in groups.items():
        errors = [found[name] for kinds in layers.values() for found in kinds.values() for name in names]
        cells = [_scientific(max(error[way] for error in errors)) for way in WAYS]
        own = sorted(error[QUANTIZATION] for error in errors)
        lines.append(f"| {group} | {' | '.join(cells)} | {_scientific(own[0])} – {_scientific(own[-1])} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures, stores and prints."""
    names = tuple(dict.fromkeys([*(name for space in FORMAT_SPACES.values() for name in space), *OTHERS]))
    layers = {name: measure(*layer, names) for name, layer in LAYERS.items()}
    document = {
        "command": "python -m benchmarks.arithmetic",
        "device": f"{jax.device_count()} {jax.devices()[0].device_kind} device",
        "relative_errors": layers,
    }
    RESULTS.write_text(json.dumps(document, indent=1) + "\n")
    print(markdown(layers))


if __name__ == "__main__":
    main()
