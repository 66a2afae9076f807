"""Format choice: turns one format index per layer into the `"formats"` collection that a quantised model reads."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from aqt_like import calibration, clip_multiples, interception
from aqt_like.format_probe import FormatProbe
from aqt_like.formats import Format, FormatTable, LayerFormat, format_table, parse_format
from aqt_like.granularity import ScaleRule, float32_scale


class ClipMultiples(NamedTuple):
    """Clip multiples per layer and format, float32[L, K] each, in units of the tensor's root mean square."""

    weights: jax.Array
    inputs: jax.Array
    unsigned_inputs: jax.Array

    def with_inputs(self, multiple: float) -> "ClipMultiples":
        """The same with one multiple for inputs in all formats (FLIQS, A.2 and Table 4)."""
        same = jnp.full_like(self.inputs, multiple)
        return ClipMultiples(self.weights, same, jnp.copy(same))


class FormatBank(NamedTuple):
    """The K formats that layers choose from.

    Attributes:
      weights: formats of weights, leaves `[K]`.
      signed: formats of inputs that may be negative, leaves `[K]`.
      unsigned: formats of inputs that were never negative in the profile, leaves `[K]`: the unsigned twin of each
        integer, with about twice the positive levels. Equal to `signed` if unsigned formats are not used.
      unquantized: fp32, leaves scalars.
    """

    weights: FormatTable
    signed: FormatTable
    unsigned: FormatTable
    unquantized: FormatTable


def format_bank(formats: Sequence[LayerFormat], *, use_unsigned: bool) -> FormatBank:
    """The bank of `formats`. Its clip multiples are placeholders; those in use are in `ClipMultiples`.

    Raises:
      ValueError: a format is unsigned, so that it cannot hold weights.
    """
    if unsigned := [f.name for f in formats if f.weights.lowest == 0 or f.inputs.lowest == 0]:
        raise ValueError(
            f"{', '.join(unsigned)} cannot hold what is negative: name the signed format, whose unsigned twin is used "
            "for inputs that never are"
        )
    placeholders = [1.0] * len(formats)
    inputs = [f.inputs for f in formats]
    twins = [f.unsigned_twin for f in inputs] if use_unsigned else inputs
    return FormatBank(
        weights=format_table([f.weights for f in formats], placeholders),
        signed=format_table(inputs, placeholders),
        unsigned=format_table(twins, placeholders),
        unquantized=format_table([parse_format("fp32")], [1.0]).row(0),
    )


def precomputed_clip_multiples(
    formats: Sequence[LayerFormat], layer_count: int, distribution: str, *, use_unsigned: bool
) -> ClipMultiples:
    """The stored multiples of the formats (`clip_multiples.precomputed_multiples`), the same for each layer."""
    inputs = [f.inputs for f in formats]
    twins = [f.unsigned_twin for f in inputs] if use_unsigned else inputs

    def every_layer(members: Sequence[Format]) -> jax.Array:
        row = jnp.asarray(clip_multiples.precomputed_multiples(members, distribution), jnp.float32)
        return jnp.tile(row, (layer_count, 1))

    return ClipMultiples(every_layer([f.weights for f in formats]), every_layer(inputs), every_layer(twins))


def format_state(
    paths: Sequence[str],
    bank: FormatBank,
    multiples: ClipMultiples,
    choice: jax.Array,
    profile: interception.LayerCalibration,
    quantize_inputs: jax.Array,
    *,
    quantize_weights: jax.Array | None = None,
) -> dict[str, Any]:
    """The `"formats"` collection of `chosen_formats`, by layer.

    Args:
      paths: path of each layer, L in all.
      bank, multiples, choice, profile, quantize_inputs, quantize_weights: see `chosen_formats`.
    """
    chosen = chosen_formats(bank, multiples, choice, profile, quantize_inputs, quantize_weights=quantize_weights)
    return interception.by_layer(paths, chosen)


def chosen_formats(
    bank: FormatBank,
    multiples: ClipMultiples,
    choice: jax.Array,
    profile: interception.LayerCalibration,
    quantize_inputs: jax.Array,
    *,
    quantize_weights: jax.Array | None = None,
    scale_rule: ScaleRule = float32_scale,
) -> interception.LayerFormats:
    """The formats, leaves `[L]`, where layer `l` uses format `choice[l]`, with its clip multiple (FLIQS, §3).

    Args:
      bank: the formats.
      multiples: their clip multiples.
      choice: int32[L], format index of each layer; may be traced.
      profile: stacked profiles of the layers' inputs, leaves `[L]`.
      quantize_inputs: bool scalar or bool[L]; False leaves inputs in fp32 (two-phase quantisation; FLIQS, A.2). Inputs
        that were never profiled, or all zeros in the profile, have no clip threshold and stay in fp32 as well
        (`interception.check_profile` names them).
      quantize_weights: bool[L]; False leaves weights in fp32. All weights are quantised if None.
      scale_rule: adapts the clip thresholds of inputs.
    """

    def chosen(per_layer: jax.Array) -> jax.Array:
        return jnp.take_along_axis(per_layer, choice[:, None], axis=1)[:, 0]

    weights = bank.weights.row(choice)._replace(clip_multiple=chosen(multiples.weights))
    if quantize_weights is not None:
        weights = jax.tree.map(lambda q, f: jnp.where(quantize_weights, q, f), weights, bank.unquantized)
    signed = bank.signed.row(choice)._replace(clip_multiple=chosen(multiples.inputs))
    unsigned = bank.unsigned.row(choice)._replace(clip_multiple=chosen(multiples.unsigned_inputs))
    inputs = jax.tree.map(lambda u, s: jnp.where(profile.never_negative, u, s), unsigned, signed)
    quantized = quantize_inputs & profile.tells_a_threshold
    inputs = jax.tree.map(lambda q, f: jnp.where(quantized, q, f), inputs, bank.unquantized)
    clip = scale_rule(inputs.clip_multiple * profile.root_mean_square, inputs)
    return interception.LayerFormats(weights, inputs, clip)


def probe_all_formats(
    bank: FormatBank,
    multiples: ClipMultiples,
    profile: interception.LayerCalibration,
    zeros: jax.Array,
    *,
    active: jax.Array,
    examples: int,
    scale_rule: ScaleRule = float32_scale,
) -> FormatProbe:
    """Probes of all K formats of L layers, leaves `[L, …]`, for `LayerFormats.probe`.

    Args:
      bank, multiples, profile: see `chosen_formats`. Inputs without a clip threshold yet have scores of 0.
      zeros: float32[L, 2, K]: its gradient is the scores of weights and of inputs (`format_probe`).
      active: bool scalar, whether anything is measured.
      examples: number of examples on which inputs are measured.
      scale_rule: see `chosen_formats`.
    """
    layers, _, count = zeros.shape

    def of_format(k: jax.Array) -> interception.LayerFormats:
        quantized = jnp.ones(layers, bool)
        return chosen_formats(bank, multiples, jnp.full(layers, k), profile, quantized, scale_rule=scale_rule)

    rows = jax.vmap(of_format, out_axes=1)(jnp.arange(count))
    return FormatProbe(
        weights=rows.weights,
        inputs=rows.inputs,
        input_clips=rows.input_clip,
        of_weights=zeros[:, 0],
        of_inputs=zeros[:, 1],
        active=jnp.broadcast_to(active, layers),
        examples=examples,
    )


def profiled_clip_multiples(
    paths: Sequence[str],
    bank: FormatBank,
    operands: Mapping[str, interception.LayerOperands],
    criterion: calibration.Criterion = calibration.best_multiples,
) -> ClipMultiples:
    """The best clip multiples on real weights and inputs, instead of precomputed ones (FLIQS, §3).

    Args:
      paths: path of each layer.
      bank: the formats.
      operands: what each layer multiplies on one batch, by path (`interception.layer_operands`).
      criterion: least squared error, or least divergence (APQ, §4).

    Raises:
      ValueError: `operands` lacks a layer.
    """
    if unknown := [path for path in paths if path not in operands]:
        raise ValueError(f"no layer that can be quantised ran at {', '.join(unknown)}; there ran {', '.join(operands)}")

    def kernel(path: str) -> jax.Array:
        values = operands[path].weights
        if operands[path].is_product:
            return values
        # Each channel is clipped at a multiple of its own root mean square: divided by it, channels can be pooled.
        rms = calibration.root_mean_square(values, tuple(range(values.ndim - 1)))
        return values / jnp.where(rms > 0, rms, 1.0)

    def best(tensors: Sequence[jax.Array], table: FormatTable) -> jax.Array:
        return jnp.stack([criterion(x, table) for x in tensors])

    kernels, activations = [kernel(p) for p in paths], [operands[p].input for p in paths]
    return ClipMultiples(best(kernels, bank.weights), best(activations, bank.signed), best(activations, bank.unsigned))
