import re
import shlex
import types

import pytest

from launch import layers
from launch.rule_suggestions import suggested_rules

KINDS = ("expand", "depthwise", "project")


def run(capsys, *arguments):
    layers.main(list(arguments))
    return capsys.readouterr().out


def test_our_models_and_rules(capsys):
    text = run(capsys, "--model=cifar_resnet", "--input=32,32,3", "--rule=stem: bf16", "--rule=shortcut: int8 tie")
    lines = {line.split()[0]: line for line in text.splitlines() if line.strip()}
    assert "32×32×3" in lines["stem"]
    assert lines["stem"].rstrip().endswith("bf16")
    assert "stage2_block1/*.format" in lines["stage2_block1/shortcut"]
    assert "int4, int8, bf16" in lines["classifier"]
    assert "22 layers" in text


def test_a_model_of_the_users_own(capsys):
    text = run(capsys, "--model=examples.digits_mlp:make_model", "--input=8,8,1")
    assert "hidden1" in text
    assert "decision" not in text


def test_a_model_of_whole_numbers(capsys):
    text = run(capsys, "--model=examples.text_transformer:Transformer", "--input=64", "--dtype=int32")
    assert "attention2/query" in text


def test_what_is_in_no_layer_is_told_last(capsys):
    text = run(capsys, "--model=tests.unusual_networks:tied_head", "--input=9", "--dtype=int32")
    assert text.splitlines()[-1] == (
        "18,432,000 of 18,468,864 MACs (99.8%) are in no listed layer and stay in float, unpriced: embed (18,432,000)"
    )
    assert "no listed layer" not in run(capsys, "--model=cifar_resnet", "--input=32,32,3")


def test_what_sets_layers_apart_is_told(capsys):
    lines = run(capsys, "--model=tests.unusual_networks:assembled", "--input=3,8,8,3").splitlines()
    for kind in ("conv, 3 runs", "conv, dilated", "dense, 16 groups", "blocks/fc[5]"):
        assert sum(kind in line for line in lines) >= 1


def test_several_inputs_are_named_and_the_call_is_told(capsys):
    network = ["--model=tests.called_networks:Sentences", "--input=ids=6:int32", "--input=mask=6"]
    lines = run(capsys, *network).splitlines()
    assert "2 layers, 408 MACs, 88 weights" in lines  # 6 · 8 · 8 + 8 · 3
    assert any(
        line.startswith("the model is called as Sentences(ids, mask, deterministic=not train)") for line in lines
    )
    text = run(capsys, "--model=tests.called_networks:Sequences", "--input=6,4", "--input=:int32")
    assert "Sequences(x, lengths), with its field settings.deterministic=not train; random numbers in" in text
    network = ["--model=tests.called_networks:Raw", "--input=x=6,4", "--apply=tests.called_networks:call_raw"]
    assert "encoder" in run(capsys, *network)


@pytest.mark.parametrize(
    ("network", "last"),
    [
        (["--model=examples.text_transformer:Transformer", "--input=64:int32"], "(query|key|value)$: tie"),
        (["--model=tests.unusual_networks:looped", "--input=64"], r"\[[\d,]+\]$: tie"),
    ],
)
def test_rules_are_suggested_and_can_be_pasted(network, last, capsys):
    text = run(capsys, *network)
    rules = [shlex.split(line)[0] for line in re.findall("^rule to consider: (.*)$", text, flags=re.MULTILINE)]
    assert rules[-1] == f"--rule={last}"
    assert len(rules) == 3
    with_rules = run(capsys, *network, *rules)
    assert "rule to consider" not in with_rules
    assert with_rules.splitlines()[1].rstrip().endswith("int8, bf16")  # the first layer


def test_depthwise_convolutions_are_suggested_by_how_they_end():
    def layer(path, groups=1):
        return types.SimpleNamespace(path=path, kind="conv", groups=groups, in_channels=8)

    blocks = [layer(f"block{i}/{kind}/conv", 8 if kind == "depthwise" else 1) for i in (1, 2) for kind in KINDS]
    rules = list(suggested_rules((layer("stem"), *blocks), ["int4", "int6", "int8"]))
    assert rules == ["^stem$: int6,int8", "^block2/project/conv$: int6,int8", "(^|/)(depthwise/conv)$: int6,int8"]
    rules = list(suggested_rules((layer("a", 8), layer("b"), layer("c", 8)), ["int4", "int8"]))
    assert rules == ["^a$: int8", "^c$: int8", "^(a|c)$: int8"]
    assert not suggested_rules((layer("a"), layer("b")), ["int4"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model=nowhere:make", "--input=2"], "model 'nowhere:make': No module named 'nowhere'"),
        (["--model=json:dumper", "--input=2"], "model 'json:dumper': .*no attribute 'dumper'"),
        (["--model=fractions:Fraction", "--input=2"], "expected a flax.linen.Module, got Fraction"),
        (["--model=cifar_resnet", "--input=1,32,32,3"], "one example, without a batch axis: 32,32,3"),
        (["--model=cifar_resnet", "--input=32:text"], "--input=32:text: expected the shape of one example"),
        (["--model=cifar_resnet", "--input=a=2", "--input=3"], "--input=3: expected another name for each input"),
        (["--model=cifar_resnet", "--input=32,a"], "--input=32,a: expected the shape of one example"),
        (["--model=cifar_resnet", "--input=32,0,3"], "--input=32,0,3: expected the shape of one example"),
        (["--model=cifar_resnet", "--input=32,32,3", "--set=classes=4"], "--set=classes=4: expected a setting of the"),
        (["--model=cifar_resnet", "--input=32,32,3", "--rule=stam: int8"], "'stam: int8' matches no layer; near it"),
    ],
)
def test_errors_are_one_line(capsys, arguments, message):
    with pytest.raises(SystemExit, match=message):
        run(capsys, *arguments)
