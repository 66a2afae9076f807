"""Rules over layer paths: the grammar that `quantize_model` and the search spaces of configs share.

A rule is a text `EXPRESSION: WHAT`. `EXPRESSION` is a regular expression, searched in the path of a layer; the first
rule that matches applies to the layer. `WHAT` is

* formats joined by commas: the layer may use only these; a single one pins it (`stem: bf16`);
* `ignore`: the layer stays in float, and is neither searched nor counted;
* `per_tensor`, `per_channel` or `per_block_32`: the weights that share a scale (`per_channel` by default: output
  channels); formats may precede it;
* `tie`: layers whose paths differ only in the part that the expression matches share one decision
  (`(query|key|value)$: tie`); formats and a granularity may precede it
  (`(query|key|value)$: int4,int8 per_tensor tie`).

Layers that no rule matches are left to the caller: a search allows them all formats.

Where an architecture is searched, a rule whose `WHAT` are numbers joined by commas is about its decisions instead:
`EXPRESSION` is searched in their names, and they may have only these options (`stage1_block1.width: 0.5,1`); a single
one pins them (`\\.kernel: 3`).
"""

import dataclasses
import difflib
import re
from collections.abc import Mapping, Sequence

from aqt_like import granularity
from aqt_like.formats import UnknownFormatError, parse_layer_format
from aqt_like.layer_calls import split_repetition


class RuleError(ValueError):
    """Raised for a rule that cannot be parsed or applies to no layer; the message quotes it."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """A parsed rule on layers, or on decisions of an architecture.

    Attributes:
      text: the rule as written.
      expression: the regular expression over paths.
      formats: names of the allowed formats; empty if all are allowed.
      granularity: name of the granularity of weights (`granularity.kernel_granularity`); empty for the default.
      ignored: whether layers stay in float.
      tied: whether layers share one decision.
      options: names of the allowed options of decisions of an architecture; empty if it is on layers.
    """

    text: str
    expression: re.Pattern[str]
    formats: tuple[str, ...] = ()
    granularity: str = ""
    ignored: bool = False
    tied: bool = False
    options: tuple[str, ...] = ()


def is_on_architecture(text: str) -> bool:
    """Whether a rule `EXPRESSION: WHAT` is on decisions of an architecture: `WHAT` are numbers."""
    what = text.rpartition(":")[2]
    return bool(re.fullmatch(r"[\s\d.,]*\d[\s\d.,]*", what))


def parse_rule(text: str, formats: Sequence[str]) -> Rule:
    """Parses a rule `EXPRESSION: WHAT`.

    Args:
      text: the rule.
      formats: names of the formats that the rule may use.

    Raises:
      RuleError: the rule cannot be parsed, or uses a format that is not in `formats`.
    """
    expression, separator, what = text.rpartition(":")
    if not separator:
        raise RuleError(f"rule {text!r}: {_EXPECTED}")
    rule = _parse(text, expression, what)
    if unknown := [name for name in rule.formats if name not in formats]:
        raise RuleError(f"rule {text!r}: {', '.join(unknown)} not among the formats: {', '.join(formats)}")
    return rule


def make_rule(expression: str, what: str) -> Rule:
    """Parses a rule given as two texts, `EXPRESSION` and `WHAT`, which may use all number formats.

    Raises:
      RuleError: the rule cannot be parsed, or uses a name that is no number format.
    """
    text = f"{expression}: {what}"
    if not isinstance(expression, str) or not isinstance(what, str):
        raise RuleError(f"rule {text!r}: expected two texts, as in 'stem' and 'bf16'")
    rule = _parse(text, expression, what)
    for name in rule.formats:
        try:
            parse_layer_format(name)
        except UnknownFormatError as error:
            raise RuleError(f"rule {text!r}: {error}") from error
    return rule


def allowed_options(decisions: Mapping[str, Sequence[str]], texts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """The options that rules on an architecture leave, as ascending positions, by the names of their decisions.

    Args:
      decisions: names of the options of each decision of the architecture, numbers, by its name.
      texts: rules for which `is_on_architecture` holds.

    Raises:
      RuleError: a rule cannot be parsed, or applies to no decision; or a decision has no such option.
    """
    if texts and not decisions:
        raise RuleError(f"rule {texts[0]!r}: no architecture is searched: expected formats, as in 'stem: bf16'")
    rule_of = decide(list(decisions), [_parse_options(text) for text in texts], "decision")
    for name, rule in rule_of.items():
        if unknown := [option for option in rule.options if option not in decisions[name]]:
            raise RuleError(
                f"rule {rule.text!r}: {name} has no option {unknown[0]}: expected {', '.join(decisions[name])}"
            )
    return {
        name: tuple(sorted({decisions[name].index(option) for option in rule.options}))
        for name, rule in rule_of.items()
    }


def decide(paths: Sequence[str], rules: Sequence[Rule], what: str = "layer") -> dict[str, Rule]:
    """The first matching rule of each path; paths without a matching rule are left out.

    Args:
      paths: of layers, or names of decisions.
      rules: in the order of their precedence.
      what: what the paths are of, for messages.

    Raises:
      RuleError: a rule applies to no path.
    """
    rule_of: dict[str, Rule] = {}
    for path in paths:
        for rule in rules:
            if rule.expression.search(path):
                rule_of[path] = rule
                break
    for rule in rules:
        if rule not in rule_of.values():
            raise RuleError(_unused(rule, paths, what))
    return rule_of


def check_repetitions(rule_of: Mapping[str, Rule]) -> None:
    """Checks that the repetitions of a layer in a loop are quantised or not, and share scales, alike.

    Args:
      rule_of: the rule of each layer that has one, by path.

    Raises:
      RuleError: some repetitions of a layer stay in float and others do not, or their granularities differ.
    """
    first: dict[str, str] = {}
    for path, rule in rule_of.items():
        layer, repetition = split_repetition(path)
        if not repetition:
            continue
        other = first.setdefault(layer, path)
        kept = rule_of[other]
        if (rule.ignored, rule.granularity) != (kept.ignored, kept.granularity):
            raise RuleError(
                f"{other} and {path} run in one loop: expected 'ignore' for both or none, and one granularity; they "
                f"have the rules {kept.text!r} and {rule.text!r}"
            )


_EXPECTED = "expected EXPRESSION: WHAT, as in 'stem: bf16' or 'mlp: tie'"


def _parse_options(text: str) -> Rule:
    """Parses a rule on an architecture; its options are not yet checked."""
    expression, _, what = text.rpartition(":")
    try:
        options = tuple(f"{float(option):g}" for option in what.split(","))
    except ValueError as error:
        raise RuleError(f"rule {text!r}: expected numbers joined by commas, as in 'block1.width: 0.5,1'") from error
    return Rule(text, _compiled(text, expression), options=options)


def _compiled(text: str, expression: str) -> re.Pattern[str]:
    if not expression.strip():
        raise RuleError(f"rule {text!r}: {_EXPECTED}")
    try:
        return re.compile(expression.strip())
    except re.error as error:
        raise RuleError(f"rule {text!r}: no regular expression: {error}") from error


def _parse(text: str, expression: str, what: str) -> Rule:
    """Parses a rule on layers; its formats are not yet checked."""
    if not what.strip():
        raise RuleError(f"rule {text!r}: {_EXPECTED}")
    compiled = _compiled(text, expression)
    words = what.split()
    tied = words[-1] == "tie"
    if tied:
        words.pop()
    if words == ["ignore"] and not tied:
        return Rule(text, compiled, ignored=True)
    name = words.pop() if words and words[-1].startswith("per_") else ""
    if name:
        try:
            granularity.kernel_granularity(name)
        except ValueError as error:
            raise RuleError(f"rule {text!r}: {error}") from error
    allowed = tuple(name.strip() for name in "".join(words).split(",") if name.strip())
    return Rule(text, compiled, allowed, granularity=name, tied=tied)


def _unused(rule: Rule, paths: Sequence[str], what: str) -> str:
    if any(rule.expression.search(path) for path in paths):
        return f"rule {rule.text!r} decides nothing: earlier rules match all the {what}s that it does"
    near_matches = difflib.get_close_matches(rule.expression.pattern, [*paths], n=3, cutoff=0.3) or list(paths[:8])
    return f"rule {rule.text!r} matches no {what}; near it are {', '.join(near_matches)}"
