"""The grammar of rules, without the search spaces that are made of them."""

import pytest

from aqt_like.path_rules import RuleError, allowed_options, decide, is_on_architecture, make_rule, parse_rule

PATHS = ("stem", "block1/query", "block1/out", "block2/query", "head")
FORMATS = ("int4", "int8", "bf16")


def test_what_a_rule_says():
    found = parse_rule("(query|key)$: int4, int8 per_block_32 tie", FORMATS)
    assert (found.formats, found.granularity, found.tied, found.ignored) == (
        ("int4", "int8"),
        "per_block_32",
        True,
        False,
    )
    assert found.expression.pattern == "(query|key)$"
    assert parse_rule("head: ignore", FORMATS).ignored
    assert parse_rule("head: per_tensor", FORMATS).formats == ()
    assert parse_rule("(?:a|b): bf16", FORMATS).expression.pattern == "(?:a|b)"  # the last colon separates


def test_in_two_texts_any_number_format_goes():
    assert make_rule("stem", "int4/int8 per_tensor").formats == ("int4/int8",)
    assert make_rule(" a:b ", "e3m2").expression.pattern == "a:b"
    assert make_rule("stem", "bf16") == parse_rule("stem: bf16", FORMATS)


def test_the_first_rule_that_matches_decides():
    rules = [parse_rule(text, FORMATS) for text in ("block1: int8", "query|head: int4")]
    decided = decide(PATHS, rules)
    assert decided == {
        "block1/query": rules[0],
        "block1/out": rules[0],
        "block2/query": rules[1],
        "head": rules[1],
    }
    assert decide(PATHS, []) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stem: int5", "rule 'stem: int5': int5 not among the formats: int4, int8, bf16"),
        ("stem", "rule 'stem': expected EXPRESSION: WHAT"),
        ("stem:", "rule 'stem:': expected EXPRESSION: WHAT"),
        (": int4", "rule ': int4': expected EXPRESSION: WHAT"),
        ("stem: per_row", "rule 'stem: per_row': unknown granularity 'per_row': expected per_tensor"),
        ("(stem: int8", r"rule '\(stem: int8': no regular expression"),
        ("stem: ignore tie", "ignore not among the formats"),
    ],
)
def test_what_cannot_be_read_is_quoted(text, message):
    with pytest.raises(RuleError, match=message):
        parse_rule(text, FORMATS)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("int99", "rule 'stem: int99': unknown number format 'int99': expected int2…int16"),
        ("int4: int8", "rule 'stem: int4: int8': unknown number format 'int4:int8'"),
        ("", "rule 'stem: ': expected EXPRESSION: WHAT"),
        (4, "rule 'stem: 4': expected two texts"),
    ],
)
def test_what_cannot_be_read_in_two_texts_is_quoted_too(what, message):
    with pytest.raises(RuleError, match=message):
        make_rule("stem", what)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["stemm: int8"], "rule 'stemm: int8' matches no layer; near it are stem"),
        (["block: int8", "query: int4"], "rule 'query: int4' decides nothing: earlier rules match all"),
    ],
)
def test_rules_that_decide_nothing_are_refused(texts, message):
    with pytest.raises(RuleError, match=message):
        decide(PATHS, [parse_rule(text, FORMATS) for text in texts])


# Rules on an architecture.

DECISIONS = {"block1.width": ("0.5", "1", "1.5"), "block1.kernel": ("3", "5"), "block2.width": ("0.5", "1", "1.5")}


def test_rules_on_an_architecture_are_those_of_numbers():
    assert all(map(is_on_architecture, ("a: 3", "a:b: 0.5, 1.0", "a: .5")))
    assert not any(map(is_on_architecture, ("a: int8", "a: int4,int8 tie", "a: ignore", "3: bf16", "a: per_block_32")))


def test_the_first_rule_that_matches_a_decision_says_its_options():
    rules = ("block1.width: 1.0", r"\.width$: 1.5,0.50", r"\.kernel: 3")
    assert allowed_options(DECISIONS, rules) == {"block1.width": (1,), "block2.width": (0, 2), "block1.kernel": (0,)}
    assert allowed_options(DECISIONS, ()) == allowed_options({}, ()) == {}


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (["block1.widht: 1"], "rule 'block1.widht: 1' matches no decision; near it are block1.width"),
        (["block1: 3"], "rule 'block1: 3': block1.width has no option 3: expected 0.5, 1, 1.5"),
        (["width: 2"], "rule 'width: 2': block1.width has no option 2: expected 0.5, 1, 1.5"),
        (["width: 1", "block2.width: 1"], "decides nothing: earlier rules match all the decisions that it does"),
        (["width: 1,,2"], "rule 'width: 1,,2': expected numbers joined by commas, as in"),
        (["(width: 1"], r"rule '\(width: 1': no regular expression"),
        ([": 1"], "rule ': 1': expected EXPRESSION: WHAT"),
    ],
)
def test_rules_that_do_not_fit_the_architecture_are_refused(rules, message):
    with pytest.raises(RuleError, match=message):
        allowed_options(DECISIONS, rules)


def test_without_an_architecture_there_is_nothing_for_numbers_to_pin():
    with pytest.raises(RuleError, match="rule 'width: 1': no architecture is searched: expected formats, as in"):
        allowed_options({}, ["width: 1"])
