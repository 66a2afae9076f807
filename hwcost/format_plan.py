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
from hwcost.genome_file import Genome, GenomeFileError, LayerChoice, format_decision
from hwcost.space import Decision, SearchSpace
from hwcost.workload import Workload

USUAL_GRANULARITY = "per_channel"


@dataclasses.dataclass(frozen=True)
class FormatPlan:
    """A search space of formats, and what its genomes mean for L layers.

    Attributes:
      workload: the layers that are searched.
      formats: all K formats.
      space: its D decisions; options are names of formats.
      decision_of: the decision of each layer, int32[L].
      format_of_option: int32[D, Kmax], the index into `formats` of each option; 0 where there is none.
      granularity_of: names (`kernel_granularity`), by path, of layers whose weights are not clipped per channel.
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

    def granularity(self, path: str) -> str:
        """Name of the granularity of a layer's weights."""
        return self.granularity_of.get(path, USUAL_GRANULARITY)

    def named(self, genome: Sequence[int] | np.ndarray) -> Genome:
        """A genome, int32[D], by names, as genome files hold it.

        Raises:
          ValueError: a genome that does not fit.
        """
        layers = {path: LayerChoice(fmt, self.granularity(path)) for path, fmt in self.layer_formats(genome).items()}
        return Genome(self.space.decode(genome), layers)

    def encode(self, genome: Genome) -> np.ndarray:
        """The genome of this plan, int32[D], that gives each layer what a named one gives it.

        Names of decisions may differ: a genome found under tied decisions fits a plan without ties, and one of APQ's a
        plan of its network. Where the layers are not told, as in files of earlier versions, choices have to fit.

        Raises:
          GenomeFileError: layers of another network, a format that a layer may not have here, other granularity, or
            tied layers with unlike formats.
        """
        if not genome.layers:
            try:
                return self.space.encode(genome.choices)
            except ValueError as error:
                raise GenomeFileError(f"a genome of another search space: {error}") from error
        paths = [layer.path for layer in self.workload]
        if unknown := sorted(set(paths) ^ set(genome.layers)):
            raise GenomeFileError(f"a genome of another network: only one of the two has {', '.join(unknown)}")
        choices: dict[str, str] = {}
        for path, index in zip(paths, self.decision_of, strict=True):
            decision, wanted = self.space.decisions[index], genome.layers[path]
            if wanted.format not in decision.options:
                raise GenomeFileError(
                    f"{path} is to have {wanted.format}, but may have {', '.join(decision.options)} here"
                )
            if choices.setdefault(decision.name, wanted.format) != wanted.format:
                raise GenomeFileError(f"{decision.name}: tied layers with unlike formats; {path} has {wanted.format}")
            if wanted.granularity not in ("", self.granularity(path)):
                raise GenomeFileError(
                    f"{path} is to have {wanted.granularity} weights, but has {self.granularity(path)} ones here: add "
                    f"the rule '{re.escape(path)}$: {wanted.granularity}'"
                )
        return self.space.encode(choices)

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
