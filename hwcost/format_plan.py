"""Which formats each layer may have: the search space of formats, made from a workload and rules over layer paths.

Rules are those of `aqt_like/path_rules.py`. Layers that no rule matches may have every format.
"""

import dataclasses
import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from aqt_like.formats import LayerFormat
from aqt_like.path_rules import Rule, RuleError, decide, parse_rule
from hwcost.space import Decision, SearchSpace
from hwcost.workload import Workload


@dataclasses.dataclass(frozen=True)
class FormatPlan:
    """A search space of formats, and what its genomes mean for L layers.

    Attributes:
      workload: the layers that are searched.
      formats: all K formats.
      space: its D decisions; options are names of formats.
      decision_of: the decision of each layer, int32[L].
      format_of_option: int32[D, Kmax], the index into `formats` of each option; 0 where there is none.
      granularity_of: names (`granularity.of_kernels`), by path, of layers whose weights are not clipped per channel.
    """

    workload: Workload
    formats: tuple[LayerFormat, ...]
    space: SearchSpace
    decision_of: np.ndarray
    format_of_option: np.ndarray
    granularity_of: dict[str, str] = dataclasses.field(default_factory=dict)

    def choice(self, genome: jax.Array) -> jax.Array:
        """The index into `formats` of each layer, int32[L], under a genome, int32[D], which may be traced."""
        option = genome[jnp.asarray(self.decision_of)]
        return jnp.asarray(self.format_of_option)[jnp.asarray(self.decision_of), option]

    def layer_formats(self, genome: Sequence[int] | np.ndarray) -> dict[str, str]:
        """The format name of each layer, by path.

        Raises:
          ValueError: a genome that does not fit.
        """
        choices = self.space.decode(genome)
        decisions = self.space.decisions
        return {
            layer.path: choices[decisions[decision].name]
            for layer, decision in zip(self.workload, self.decision_of, strict=True)
        }

    def uniform_genome(self, name: str) -> np.ndarray:
        """Every layer in the format `name`, but for layers that are pinned to another.

        Raises:
          ValueError: a layer that may have several formats, but not this one.
        """
        choices = {}
        for decision in self.space.decisions:
            if name not in decision.options and len(decision.options) > 1:
                raise ValueError(
                    f"format {name!r} is not in the search space: {decision.name} is one of "
                    f"{', '.join(decision.options)}"
                )
            choices[decision.name] = name if name in decision.options else decision.options[0]
        return self.space.encode(choices)


def format_plan(workload: Workload, formats: Sequence[LayerFormat], rules: Sequence[str] = ()) -> FormatPlan:
    """The plan of a workload under rules; without any, one decision over all `formats` per layer (FLIQS, A.5).

    Raises:
      RuleError: a rule that cannot be read, names a format that is not among `formats`, or decides nothing.
    """
    names = tuple(f.name for f in formats)
    decided = decide([layer.path for layer in workload], [parse_rule(text, names) for text in rules])
    everything = Rule("", re.compile(""))
    options: dict[str, tuple[str, ...]] = {}
    searched, decision_names = [], []
    for layer in workload:
        rule = decided.get(layer.path, everything)
        if rule.ignored:
            continue
        name = format_decision(rule.expression.sub("*", layer.path) if rule.tied else layer.path)
        options[name] = rule.formats or names
        searched.append(layer)
        decision_names.append(name)
    if not searched:
        raise RuleError("the rules ignore every layer: none is left to search")
    space = SearchSpace(tuple(Decision(name, allowed) for name, allowed in options.items()))
    table = np.zeros((len(space), space.option_counts.max()), np.int32)
    for row, decision in zip(table, space.decisions, strict=True):
        row[: len(decision.options)] = [names.index(option) for option in decision.options]
    return FormatPlan(
        workload=tuple(searched),
        formats=tuple(formats),
        space=space,
        decision_of=np.asarray([space.index(name) for name in decision_names], np.int32),
        format_of_option=table,
        granularity_of={path: rule.granularity for path, rule in decided.items() if rule.granularity},
    )


def format_decision(path: str) -> str:
    """Name of the decision that picks the format of the layer at `path`."""
    return f"{path}.format"
