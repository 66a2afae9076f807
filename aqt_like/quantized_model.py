"""Quantisation of a Flax model in one call: `quantize_model(model, variables, batch, formats="int4")`.

Its parts (`path_rules`, `interception`, `format_choice`) can be used separately: a search injects another `"formats"`
collection at each step.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from flax.core.scope import in_filter

from aqt_like import format_choice, interception, path_rules
from aqt_like.formats import parse_layer_format
from aqt_like.layer_calls import Model, split_repetition
from aqt_like.path_rules import Rule, RuleError


@dataclasses.dataclass(frozen=True, eq=False)
class QuantizedModel:
    """A model with the formats of its layers. It holds no weights: they are arguments of `apply`.

    Attributes:
      model: the linen module, unchanged.
      formats: format name of each quantised layer, by path.
      collection: the `"formats"` collection: `interception.LayerFormats` by path, including clip thresholds of inputs;
        of a frozen network `interception.FrozenLayer`, which has the codes of the weights.
      quantizer: gradient and granularity; change it with `dataclasses.replace`.
    """

    model: Model
    formats: dict[str, str]
    collection: dict[str, Any] = dataclasses.field(repr=False)
    quantizer: interception.Quantizer = dataclasses.field(repr=False)

    def apply(self, variables: Mapping[str, Any], *args: Any, mutable: Any = False, **kwargs: Any) -> Any:
        """`model.apply` with weights and inputs fake-quantised; `jit`, `vmap` and `grad` (straight-through) apply.

        Args:
          variables: the model's variables, with float weights; each call quantises them again. Of a frozen network
            those that `load_network` returned.
          *args: passed to the model.
          mutable: as in `model.apply`: names of collections, as in `["batch_stats"]`.
          **kwargs: passed to `model.apply`.

        Raises:
          ValueError: `variables` lacks `"params"`, or `mutable` includes `"params"` (they would be returned rounded) or
            `"formats"`.
        """
        for name in ("params", "formats"):
            if in_filter(mutable, name):
                raise ValueError(f"mutable={mutable!r} takes in {name!r}: name collections, as in ['batch_stats']")
        return interception.apply_quantized(
            self.model,
            {**variables, "formats": self.collection},
            *args,
            mutable=mutable,
            quantizer=self.quantizer,
            **kwargs,
        )


def quantize_model(
    model: nn.Module,
    variables: Mapping[str, Any],
    batch: Any,
    formats: str | Mapping[str, str] = "int4",
    **call_kwargs: Any,
) -> QuantizedModel:
    """Quantises the weights and inputs of a model's layers: convolutions, dense layers, einsums and `Product`s.

    Inputs are clipped at a multiple of their root mean square over `batch`, weights at a multiple of the root mean
    square of each output channel. The multiples are those of least squared error on Gaussian data (FLIQS, §3
    "Switchable Clipping" and A.8). Inputs that are never negative use unsigned integers. Other products of the model
    stay in float.

    A layer that loops repeat with parameters of its own has a path per repetition, as in `blocks/mlp[3]`.

    Args:
      model: any linen module.
      variables: the model's variables as `model.init` returns them, trained or not.
      batch: calibration data: the model's input, or a tuple of its positional arguments. A few dozen typical examples
        suffice.
      formats: one format for all layers, as in `"int4"`, or `"int4/int8"` for weights and inputs; or rules over paths,
        as in `{"stem": "bf16", "head": "int8 per_tensor", "gate": "ignore", ".*": "int4"}`: the first expression that
        matches a layer's path applies (see `path_rules`), and `ignore` leaves the layer in float.
      **call_kwargs: passed to `model.apply` during calibration, as in `train=False`.

    Raises:
      RuleError: a rule cannot be parsed, has several formats, or applies to no layer; or a layer has no rule, or one
        that cannot be applied to it.
      UnknownFormatError, ValueError: a format is unsigned or has no clip multiple; `batch` is empty or not finite;
        `variables` lacks `"params"`; the model has no layer to quantise; the input of a layer has no finite mean square
        or is all zeros; or the call is under `jit`, where values are unknown.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model is a {type(model).__name__}: expected a linen module (of a quantised model, its `model`)"
        )
    rules = _rules(formats)
    args = batch if type(batch) is tuple else (batch,)
    _check_batch(args, variables)
    profiles = interception.profile_inputs(model, variables, *args, **call_kwargs)
    if not profiles:
        kinds = ", ".join(kind.__name__ for kind in interception.QUANTIZABLE)
        raise ValueError(f"{type(model).__name__} has no layer that can be quantised: expected one of {kinds}")
    if "" in profiles:
        raise ValueError(f"{type(model).__name__} is itself a layer, without a path: expected a module that holds it")
    kernels = _kernel_paths(variables["params"])
    rule_of = _decide(profiles, kernels, rules)
    paths = [path for path in profiles if not rule_of[path].ignored]
    if not paths:
        raise RuleError("the rules ignore every layer: none is left to quantise")

    names = [rule_of[path].formats[0] for path in paths]
    bank_names = list(dict.fromkeys(names))
    bank_formats = [parse_layer_format(name) for name in bank_names]
    profile = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(profiles[path] for path in paths))
    collection = format_choice.format_state(
        paths,
        format_choice.format_bank(bank_formats, use_unsigned=True),
        format_choice.precomputed_clip_multiples(bank_formats, len(paths), "gaussian", use_unsigned=True),
        jnp.asarray([bank_names.index(name) for name in names], jnp.int32),
        profile,
        jnp.asarray(True),
    )
    clips = interception.weight_clips({path: rule_of[path].granularity for path in paths if rule_of[path].granularity})
    return QuantizedModel(
        model, dict(zip(paths, names, strict=True)), collection, interception.Quantizer(weight_clip_of=clips)
    )


def _rules(formats: str | Mapping[str, str]) -> list[Rule]:
    """The rules, each with one format or `ignore`.

    Raises:
      RuleError: a rule is none of these.
    """
    if not isinstance(formats, str | Mapping):
        raise RuleError(f"formats={formats!r}: expected a format, or a mapping from expressions over paths to formats")
    by_expression = {".*": formats} if isinstance(formats, str) else formats
    rules = [path_rules.make_rule(expression, what) for expression, what in by_expression.items()]
    for rule in rules:
        if rule.tied:
            raise RuleError(f"rule {rule.text!r}: expected one format or 'ignore'; only a search can tie decisions")
        if not rule.ignored and len(rule.formats) != 1:
            raise RuleError(
                f"rule {rule.text!r}: expected one format or 'ignore', got {len(rule.formats)} formats; only a search "
                "can choose among several"
            )
    return rules


def _check_batch(args: tuple, variables: Mapping[str, Any]) -> None:
    arrays = [leaf for leaf in jax.tree.leaves(args) if isinstance(leaf, jax.Array | np.ndarray)]
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((args, dict(variables)))):
        raise ValueError("quantize_model looks at values: call it outside of jit, and jit the `apply` that it gives")
    if not arrays:
        raise ValueError(f"batch of {', '.join(type(arg).__name__ for arg in args) or 'nothing'}: expected arrays")
    for array in arrays:
        if array.size == 0:
            raise ValueError(f"batch: an array of shape {array.shape} is empty")
        if jnp.issubdtype(array.dtype, jnp.inexact) and not (finite := jnp.isfinite(array)).all():
            raise ValueError(
                f"batch: {int((~finite).sum())} of {array.size} values of the array of shape {array.shape} are NaN or "
                "infinite"
            )


def _kernel_paths(params: Mapping[str, Any]) -> set[str]:
    """Paths of modules with a parameter `kernel` of at least two axes, as linen's layers have."""
    flat: dict[tuple[str, ...], Any] = traverse_util.flatten_dict(nn.meta.unbox(params))
    return {"/".join(path[:-1]) for path, leaf in flat.items() if path[-1] == "kernel" and np.ndim(leaf) >= 2}


def _decide(
    profiles: Mapping[str, interception.LayerCalibration], kernels: set[str], rules: Sequence[Rule]
) -> dict[str, Rule]:
    """The rule of each layer, by path.

    Raises:
      RuleError: a layer has no rule, or one that cannot be applied to it.
    """
    layers = {split_repetition(path)[0] for path in profiles}
    paths = [*profiles, *sorted(kernels - layers)]
    rule_of = path_rules.decide(paths, rules)
    if unmatched := [path for path in paths if path not in rule_of]:
        raise RuleError(
            f"no rule decides about {', '.join(unmatched)}: add '.*': 'FORMAT' or '.*': 'ignore' as the last one"
        )
    path_rules.check_repetitions(rule_of)
    for path, rule in rule_of.items():
        if not rule.ignored and (problem := _problem(path, rule, profiles, kernels)):
            raise RuleError(f"rule {rule.text!r}: {path} {problem}; to leave it in float, put {path!r}: 'ignore' first")
    return rule_of


def _problem(
    path: str, rule: Rule, profiles: Mapping[str, interception.LayerCalibration], kernels: set[str]
) -> str | None:
    """The reason why a layer cannot be quantised by its rule; None if it can."""
    if path not in profiles:
        return (
            "holds a kernel, but no layer that can be quantised ran there on this batch (in nn.cond, nn.switch and "
            "nn.while_loop none can)"
        )
    profile = profiles[path]
    if split_repetition(path)[0] not in kernels and rule.granularity not in ("", "per_tensor"):
        return f"is a product, both of whose factors are clipped per tensor, not {rule.granularity}"
    if profile.batches == 0:
        return "has an input with NaN or infinite values, or whose squares overflow, on this batch"
    if profile.mean_square == 0 and parse_layer_format(rule.formats[0]).inputs.scaled:
        return "has an input of nothing but zeros on this batch, which tells no clip threshold"
    return None
