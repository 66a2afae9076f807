"""Rules over layer paths: one grammar for `quantize_model` and for the search spaces of configs.

A rule is a text `EXPRESSION: WHAT`. The expression is a regular one, searched in a layer's path; the first rule whose
expression is found decides about the layer. `WHAT` is

* formats joined by commas: the layer may have only these; a single one pins it (`stem: bf16`);
* `ignore`: the layer stays in float, and is neither searched nor counted;
* `per_tensor`, `per_channel` or `per_block_32`: which of the layer's weights share a scale (per output channel, unless
  said); formats may stand before it;
* `tie`: layers whose paths differ only in what the expression found share one decision (`(query|key|value)$: tie`);
  formats and a granularity may stand before it (`(query|key|value)$: int4,int8 per_tensor tie`).

What becomes of layers that no rule matches is up to those who ask: a search lets them have every format.
"""

import dataclasses
import difflib
import re
from collections.abc import Sequence

from aqt_like import granularity
from aqt_like.formats import UnknownFormatError, parse_layer_format


class RuleError(ValueError):
    """A rule that cannot be read, or that decides nothing; the message quotes it."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """A rule, read: `formats` is empty where all are allowed, `granularity` where it is the usual one."""

    text: str
    expression: re.Pattern[str]
    formats: tuple[str, ...] = ()
    granularity: str = ""
    ignored: bool = False
    tied: bool = False


def parse_rule(text: str, formats: Sequence[str]) -> Rule:
    """Reads `EXPRESSION: WHAT`.

    Args:
      text: the rule.
      formats: names of the formats that it may give.

    Raises:
      RuleError: it cannot be read, or names a format that is not among `formats`.
    """
    expression, separator, what = text.rpartition(":")
    if not separator:
        raise RuleError(f"rule {text!r}: {_EXPECTED}")
    rule = _read(text, expression, what)
    if unknown := [name for name in rule.formats if name not in formats]:
        raise RuleError(f"rule {text!r}: {', '.join(unknown)} not among the formats: {', '.join(formats)}")
    return rule


def make_rule(expression: str, what: str) -> Rule:
    """The rule of an expression and what it gives, in two texts; all number formats are allowed.

    Raises:
      RuleError: it cannot be read, or names no number format.
    """
    text = f"{expression}: {what}"
    if not isinstance(expression, str) or not isinstance(what, str):
        raise RuleError(f"rule {text!r}: expected two texts, as in 'stem' and 'bf16'")
    rule = _read(text, expression, what)
    for name in rule.formats:
        try:
            parse_layer_format(name)
        except UnknownFormatError as error:
            raise RuleError(f"rule {text!r}: {error}") from error
    return rule


def decide(paths: Sequence[str], rules: Sequence[Rule]) -> dict[str, Rule]:
    """The first rule that matches, by path; paths that none matches are left out.

    Raises:
      RuleError: a rule that decides nothing.
    """
    decided: dict[str, Rule] = {}
    for path in paths:
        for rule in rules:
            if rule.expression.search(path):
                decided[path] = rule
                break
    for rule in rules:
        if rule not in decided.values():
            raise RuleError(_unused(rule, paths))
    return decided


_EXPECTED = "expected EXPRESSION: WHAT, as in 'stem: bf16' or 'mlp: tie'"


def _read(text: str, expression: str, what: str) -> Rule:
    """The rule, whose formats are still to be looked up."""
    if not expression.strip() or not what.strip():
        raise RuleError(f"rule {text!r}: {_EXPECTED}")
    try:
        compiled = re.compile(expression.strip())
    except re.error as error:
        raise RuleError(f"rule {text!r}: no regular expression: {error}") from error
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


def _unused(rule: Rule, paths: Sequence[str]) -> str:
    if any(rule.expression.search(path) for path in paths):
        return f"rule {rule.text!r} decides nothing: earlier rules match all the layers that it does"
    near = difflib.get_close_matches(rule.expression.pattern, [*paths], n=3, cutoff=0.3) or list(paths[:8])
    return f"rule {rule.text!r} matches no layer; near it are {', '.join(near)}"
