"""Suggested rules: what is known to matter for most networks, as rules over the layer paths of this one."""

import re
from collections.abc import Sequence

from aqt_like.layer_calls import split_repetition
from hwcost.workload import LayerSpec, Workload

_ATTENTION = (  # names of the projections of one attention
    ("query", "key", "value"),
    ("q", "k", "v"),
    ("q_proj", "k_proj", "v_proj"),
    ("to_q", "to_k", "to_v"),
)
_REPETITIONS = r"\[[\d,]+\]$"


def suggested_rules(layers: Workload, formats: Sequence[str]) -> dict[str, str]:
    """Rules as text, in the order in which they are to stand, and what each is for.

    Args:
      layers: of the network, in order of execution.
      formats: names of the formats that layers choose from, from the narrowest to the widest.
    """
    wide = ",".join(formats[len(formats) // 2 :])
    searched = [layer for layer in layers if layer.kind != "product"]
    paths = [layer.path for layer in searched]
    rules = {}
    if len(formats) > 1:
        rules[f"{_only([paths[0]], paths)}: {wide}"] = "the first layer sees the input, and is small in most networks"
        rules[f"{_only([paths[-1]], paths)}: {wide}"] = "the last layer makes the logits"
        if depthwise := [layer.path for layer in searched if _is_depthwise(layer)]:
            rules[f"{_only(depthwise, paths)}: {wide}"] = "depthwise convolutions have few weights per channel"
    for names in _ATTENTION:
        expression = f"(^|/)({'|'.join(names)})$"
        found = {path.rsplit("/", 1)[-1] for path in paths if re.search(expression, path)}
        if found == set(names):
            rules[f"({'|'.join(names)})$: tie"] = "query, key and value of an attention read one input"
    if any(split_repetition(path)[1] for path in paths):
        rules[f"{_REPETITIONS}: tie"] = "all repetitions of a loop alike; leave it out to search each"
    return rules


def _is_depthwise(layer: LayerSpec) -> bool:
    return layer.kind == "conv" and layer.groups > 1 and layer.groups == layer.in_channels


def _only(chosen: Sequence[str], paths: Sequence[str]) -> str:
    """An expression that matches these of the paths and no other: by how they end, if that tells them."""
    if len(chosen) == 1:
        return f"^{re.escape(chosen[0])}$"
    others = set(paths) - set(chosen)
    for parts in (1, 2):
        ends = dict.fromkeys("/".join(path.split("/")[-parts:]) for path in chosen)
        expression = f"(^|/)({'|'.join(map(re.escape, ends))})$"
        if len(ends) < len(chosen) and not any(re.search(expression, path) for path in others):
            return expression
    return f"^({'|'.join(map(re.escape, chosen))})$"
