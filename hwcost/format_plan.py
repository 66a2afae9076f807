"""The search space of formats, and of an architecture if that is searched too, from a workload and rules over paths.

Rules are those of `aqt_like/path_rules.py`. Layers that no rule matches may use all formats.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from aqt_like.formats import LayerFormat
from aqt_like.layer_calls import split_repetition
from aqt_like.path_rules import Rule, RuleError, check_repetitions, decide, parse_rule
from hwcost.genome_file import Genome, GenomeFileError, LayerChoice, format_decision
from hwcost.layer_variants import NO_ARCHITECTURE, Architecture
from hwcost.space import Decision, SearchSpace
from hwcost.workload import LayerSpec, Workload

USUAL_GRANULARITY = "per_channel"


@dataclasses.dataclass(frozen=True)
class FormatPlan:
    """A search space of formats, and the mapping from its genomes to the formats of L layers.

    Attributes:
      workload: the L searched layers; where an architecture is searched, those of the largest network.
      formats: all K formats.
      space: the D decisions: those whose options are format names, then those of the architecture.
      decision_of: int32[L], decision index of each layer's format.
      format_of_option: int32[D, Kmax], index into `formats` of each option; padded with 0.
      granularity_of: granularity names (`kernel_granularity`) by path, for layers that a rule gives one.
    """

    workload: Workload
    formats: tuple[LayerFormat, ...]
    space: SearchSpace
    decision_of: np.ndarray
    format_of_option: np.ndarray
    granularity_of: dict[str, str] = dataclasses.field(default_factory=dict)
    architecture: Architecture = NO_ARCHITECTURE

    @property
    def base_workload(self) -> Workload:
        """The layers of the network that costs are told relative to."""
        if self.architecture.relative_to:
            return self.architecture.relative_to
        decisions = self.architecture.space.decisions
        base = {d.name: d.options.index(self.architecture.base[d.name]) for d in decisions}
        return tuple(self._layers_under(base).values())

    def layers_of(self, genome: Sequence[int] | np.ndarray) -> dict[str, LayerSpec]:
        """What each of the L layers is in the network of a genome, int32[D], by path; without those that it lacks."""
        return self._layers_under(dict(zip((d.name for d in self.space.decisions), map(int, genome), strict=True)))

    def _layers_under(self, options: Mapping[str, int]) -> dict[str, LayerSpec]:
        variants = self.architecture.variants
        layers = {
            layer.path: variants[layer.path].chosen(options) if layer.path in variants else layer
            for layer in self.workload
        }
        return {path: layer for path, layer in layers.items() if layer is not None}

    def choice(self, genome: jax.Array) -> jax.Array:
        """Index into `formats` of each layer, int32[L], for a genome, int32[D], which may be traced."""
        option = genome[jnp.asarray(self.decision_of)]
        return jnp.asarray(self.format_of_option)[jnp.asarray(self.decision_of), option]

    def architecture_of(self, genome: Sequence[int] | np.ndarray) -> np.ndarray:
        """The options of the architecture's decisions, int32[A], in a genome, int32[D]."""
        decisions = self.architecture.space.decisions
        return np.asarray([genome[self.space.index(decision.name)] for decision in decisions], np.int32)

    def option_sums(self, values: jax.Array) -> jax.Array:
        """Sums over the layers of each decision, float32[D, Kmax], of values per layer and format, float32[L, K]."""
        decision_of, format_of_option = jnp.asarray(self.decision_of), jnp.asarray(self.format_of_option)
        of_layer = jnp.take_along_axis(values, format_of_option[decision_of], axis=1)
        return jnp.zeros(format_of_option.shape, values.dtype).at[decision_of].add(of_layer)

    def option_bits(self) -> np.ndarray:
        """Mean bits of weights and inputs of each option, float64[D, Kmax]; infinite where there is no option."""
        bits = np.asarray([(fmt.weights.bits + fmt.inputs.bits) / 2 for fmt in self.formats])
        return np.where(self.space.exists, bits[self.format_of_option], np.inf)

    def layer_formats(self, genome: Sequence[int] | np.ndarray) -> dict[str, str]:
        """The format name of each layer, by path, for a genome, int32[D].

        Raises:
          ValueError: the genome does not fit the search space.
        """
        choices = self.space.decode(genome)
        decisions = self.space.decisions
        return {
            layer.path: choices[decisions[decision].name]
            for layer, decision in zip(self.workload, self.decision_of, strict=True)
        }

    def granularity(self, path: str) -> str:
        """The name of the granularity of a layer's weights."""
        return self.granularity_of.get(path, USUAL_GRANULARITY)

    def named(self, genome: Sequence[int] | np.ndarray) -> Genome:
        """The named form of a genome, int32[D], as stored in genome files.

        Raises:
          ValueError: the genome does not fit the search space.
        """
        formats = self.layer_formats(genome)
        layers = {
            path: LayerChoice(formats[path], self.granularity(path), layer.macs)
            for path, layer in self.layers_of(genome).items()
        }
        return Genome(self.space.decode(genome), layers, self.architecture.settings(self.architecture_of(genome)))

    def encode(self, genome: Genome) -> np.ndarray:
        """The genome of this plan, int32[D], with the same formats per layer as a named genome.

        Decision names may differ: a genome from tied decisions fits a plan without ties, and one of APQ's a plan of its
        network. A genome without layers, from a file of an earlier version, is matched by its choices.

        Raises:
          GenomeFileError: the genome has layers of another network, a format that a layer may not use here, another
            granularity, or different formats for tied layers.
        """
        if not genome.layers:
            try:
                return self.space.encode(genome.choices)
            except ValueError as error:
                raise GenomeFileError(f"a genome of another search space: {error}") from error
        paths = [layer.path for layer in self.workload]
        if unknown := sorted(set(paths) ^ set(genome.layers)):
            raise GenomeFileError(f"a genome of another network: only one of the two has {', '.join(unknown)}")
        if missing := [name for name in self.architecture.base if name not in genome.choices]:
            raise GenomeFileError(f"a genome of another search space: it has no {', '.join(missing)}")
        choices = {name: genome.choices[name] for name in self.architecture.base}
        for path, index in zip(paths, self.decision_of, strict=True):
            decision, choice = self.space.decisions[index], genome.layers[path]
            if choice.format not in decision.options:
                raise GenomeFileError(
                    f"{path} is to have {choice.format}, but may have {', '.join(decision.options)} here"
                )
            if choices.setdefault(decision.name, choice.format) != choice.format:
                raise GenomeFileError(f"{decision.name}: tied layers with unlike formats; {path} has {choice.format}")
            if choice.granularity not in ("", self.granularity(path)):
                raise GenomeFileError(
                    f"{path} is to have {choice.granularity} weights, but has {self.granularity(path)} ones here: add "
                    f"the rule '{_expression(path)}: {choice.granularity}'"
                )
        try:
            return self.space.encode(choices)
        except ValueError as error:
            raise GenomeFileError(f"a genome of another search space: {error}") from error

    def uniform_genome(self, name: str) -> np.ndarray:
        """The genome, int32[D], with all layers in the format `name`, except layers pinned to another format.

        Its architecture is the base, or next to it where rules exclude that.

        Raises:
          ValueError: a layer may use several formats, but not this one.
        """
        choices = dict(self.architecture.base)
        for decision in self.space.decisions:
            if decision.name in choices:
                continue
            if name not in decision.options and len(decision.options) > 1:
                raise ValueError(
                    f"format {name!r} is not in the search space: {decision.name} is one of "
                    f"{', '.join(decision.options)}"
                )
            choices[decision.name] = name if name in decision.options else decision.options[0]
        return self.space.encode(choices)


def _expression(path: str) -> str:
    """A regular expression for a layer, with all its repetitions if a loop repeats it."""
    layer, repetition = split_repetition(path)
    return re.escape(layer) + (r"\[" if repetition else "$")


def format_plan(
    workload: Workload,
    formats: Sequence[LayerFormat],
    rules: Sequence[str] = (),
    architecture: Architecture = NO_ARCHITECTURE,
) -> FormatPlan:
    """The plan of a workload under rules; without rules, each layer decides among all `formats` (FLIQS, §3 and A.5).

    Decisions of an architecture follow those of formats (FLIQS, §6).

    Raises:
      RuleError: a rule cannot be parsed, uses a format that is not in `formats`, or applies to no layer; all layers are
        ignored; or repetitions of a layer in a loop are ignored, or share scales, unlike others.
    """
    names = tuple(f.name for f in formats)
    rule_of = decide([layer.path for layer in workload], [parse_rule(text, names) for text in rules])
    unrestricted = Rule("no rule", re.compile(""))
    check_repetitions({layer.path: _effective(rule_of.get(layer.path, unrestricted)) for layer in workload})
    options: dict[str, tuple[str, ...]] = {}
    searched_layers, decision_names, ignored = [], [], set()
    for layer in workload:
        rule = rule_of.get(layer.path, unrestricted)
        if rule.ignored:
            ignored.add(layer.path)
            continue
        name = format_decision(rule.expression.sub("*", layer.path) if rule.tied else layer.path)
        options[name] = rule.formats or names
        searched_layers.append(layer)
        decision_names.append(name)
    if not searched_layers:
        raise RuleError("the rules ignore every layer: none is left to search")
    of_formats = tuple(Decision(name, allowed) for name, allowed in options.items())
    space = SearchSpace((*of_formats, *architecture.space.decisions))
    relative_to = tuple(layer for layer in architecture.relative_to if layer.path not in ignored)
    table = np.zeros((len(space), space.option_counts.max()), np.int32)
    for row, decision in zip(table, of_formats, strict=False):
        row[: len(decision.options)] = [names.index(option) for option in decision.options]
    return FormatPlan(
        workload=tuple(searched_layers),
        formats=tuple(formats),
        space=space,
        decision_of=np.asarray([space.index(name) for name in decision_names], np.int32),
        format_of_option=table,
        granularity_of={path: rule.granularity for path, rule in rule_of.items() if rule.granularity},
        architecture=architecture._replace(relative_to=relative_to),
    )


def _effective(rule: Rule) -> Rule:
    """The rule with the usual granularity in the place of none."""
    return dataclasses.replace(rule, granularity=rule.granularity or USUAL_GRANULARITY)
