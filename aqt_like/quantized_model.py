"""A Flax model quantised in one call: `quantize_model(model, variables, batch, formats="int4")`.

What it is made of (`path_rules`, `interception`, `format_choice`) is there for those who build on it: a search injects
another `"formats"` collection at each step.
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
from aqt_like.path_rules import Rule, RuleError


@dataclasses.dataclass(frozen=True, eq=False)
class QuantizedModel:
    """A model, and how each of its layers is quantised. It holds no weights: `apply` takes those of the moment.

    Attributes:
      model: the linen module, unchanged.
      formats: name of each layer's format, by path; what computes in float is not in it.
      collection: the `"formats"` collection (`interception.LayerFormats` by path), with clip thresholds of inputs.
      quantizer: gradient and granularity; `dataclasses.replace` exchanges it.
    """

    model: nn.Module
    formats: dict[str, str]
    collection: dict[str, Any] = dataclasses.field(repr=False)
    quantizer: interception.Quantizer = dataclasses.field(repr=False)

    def apply(self, variables: Mapping[str, Any], *args: Any, mutable: Any = False, **kwargs: Any) -> Any:
        """`model.apply` with weights and inputs quantised, for `jit`, `vmap` and `grad` (straight-through).

        Args:
          variables: the model's variables, weights in float; each call quantises them anew.
          *args: passed to the model.
          mutable: as in `model.apply`, as in `["batch_stats"]`.
          **kwargs: passed to `model.apply`.

        Raises:
          ValueError: variables without `"params"`; `mutable` takes in `"params"`, which would come back rounded.
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
    """Quantises weights and inputs of a model's layers: convolutions, dense layers, einsums and `Product`s.

    Inputs are clipped at a multiple of their root mean square over all of `batch`, weights at a multiple of their own,
    per output channel; multiples are those of least error on Gaussian data (FLIQS, A.8). Inputs that are never negative
    use the unsigned integer. What a model multiplies outside of such layers stays in float.

    Args:
      model: any linen module.
      variables: what `model.init` returns, trained or not.
      batch: the model's input, or a tuple of its positional arguments. Some dozens of typical examples will do.
      formats: one format for all layers, as in `"int4"`, or `"int4/int8"` for weights and inputs; or several by path,
        as in `{"stem": "bf16", "head": "int8 per_tensor", "gate": "ignore", ".*": "int4"}`: the first expression that
        is found in a layer's path decides (see `path_rules`), and `ignore` leaves the layer in float.
      **call_kwargs: passed to `model.apply` when inputs are profiled, as in `train=False`.

    Raises:
      RuleError: a rule that cannot be read, gives several formats, or decides nothing; a layer that no rule decides
        about, or whose rule cannot be followed.
      UnknownFormatError, ValueError: a format without clip multiple, or an unsigned one; a batch that is empty or not
        finite; variables without `"params"`; a model without layers to quantise; a layer whose input has no finite mean
        square, or is nothing but zeros; a call under `jit`, where values cannot be looked at.
    """
    rules = _rules(formats)
    args = batch if type(batch) is tuple else (batch,)
    _check_batch(args, variables)
    profiles = interception.profile_inputs(model, variables, *args, **call_kwargs)
    if not profiles:
        kinds = ", ".join(kind.__name__ for kind in interception.QUANTIZABLE)
        raise ValueError(f"{type(model).__name__} has no layer that can be quantised: expected one of {kinds}")
    if "" in profiles:
        raise ValueError(f"{type(model).__name__} is itself a layer, without a path: expected a module that holds it")
    kernels = _kernels(variables["params"])
    decided = _decide(profiles, kernels, rules)
    paths = [path for path in profiles if not decided[path].ignored]
    if not paths:
        raise RuleError("the rules ignore every layer: none is left to quantise")

    names = [decided[path].formats[0] for path in paths]
    bank_names = list(dict.fromkeys(names))
    members = [parse_layer_format(name) for name in bank_names]
    profile = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(profiles[path] for path in paths))
    collection = format_choice.format_state(
        paths,
        format_choice.format_bank(members, use_unsigned=True),
        format_choice.precomputed_clip_multiples(members, len(paths), "gaussian", use_unsigned=True),
        jnp.asarray([bank_names.index(name) for name in names], jnp.int32),
        profile,
        jnp.asarray(True),
    )
    clips = {path: interception.kernel_clip(decided[path].granularity) for path in paths if decided[path].granularity}
    return QuantizedModel(
        model, dict(zip(paths, names, strict=True)), collection, interception.Quantizer(weight_clip_of=clips)
    )


def _rules(formats: str | Mapping[str, str]) -> list[Rule]:
    """The rules, each of which comes to one format or to `ignore`."""
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


def _kernels(params: Mapping[str, Any]) -> set[str]:
    """Paths of modules that hold a matrix by the name that linen's layers give to theirs."""
    flat: dict[tuple[str, ...], Any] = traverse_util.flatten_dict(params)
    return {"/".join(path[:-1]) for path, leaf in flat.items() if path[-1] == "kernel" and np.ndim(leaf) >= 2}


def _decide(
    profiles: Mapping[str, interception.LayerCalibration], kernels: set[str], rules: Sequence[Rule]
) -> dict[str, Rule]:
    """The rule of each layer, by path, once all have one that can be followed."""
    paths = [*profiles, *sorted(kernels - profiles.keys())]
    decided = path_rules.decide(paths, rules)
    if undecided := [path for path in paths if path not in decided]:
        raise RuleError(
            f"no rule decides about {', '.join(undecided)}: add '.*': 'FORMAT' or '.*': 'ignore' as the last one"
        )
    for path, rule in decided.items():
        if not rule.ignored and (problem := _problem(path, rule, profiles, kernels)):
            raise RuleError(f"rule {rule.text!r}: {path} {problem}; to leave it in float, put {path!r}: 'ignore' first")
    return decided


def _problem(
    path: str, rule: Rule, profiles: Mapping[str, interception.LayerCalibration], kernels: set[str]
) -> str | None:
    """Why a layer cannot be quantised as its rule says, if so."""
    if path not in profiles:
        return "holds a kernel, but no layer that can be quantised ran there on this batch"
    seen = profiles[path]
    if path not in kernels and rule.granularity not in ("", "per_tensor"):
        return f"is a product, both of whose factors are clipped per tensor, not {rule.granularity}"
    if seen.batches == 0:
        return (
            "runs in a lifted transform (nn.scan, nn.vmap) through which its input is not seen: give that the "
            "variable_axes={'calibration': 0}"
        )
    if not (np.isfinite(seen.mean_square) and np.isfinite(seen.smallest)):
        return f"has an input of mean square {float(seen.mean_square)} on this batch: expected a finite one"
    if seen.mean_square == 0 and parse_layer_format(rule.formats[0]).inputs.scaled:
        return "has an input of nothing but zeros on this batch, which tells no clip threshold"
    return None
