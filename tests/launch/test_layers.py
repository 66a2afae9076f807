import pytest

from launch import layers


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model=nowhere:make", "--input=2"], "model 'nowhere:make': No module named 'nowhere'"),
        (["--model=json:dumper", "--input=2"], "model 'json:dumper': .*no attribute 'dumper'"),
        (["--model=fractions:Fraction", "--input=2"], "expected a flax.linen.Module, got Fraction"),
        (["--model=cifar_resnet", "--input=1,32,32,3"], "one example, without a batch axis: 32,32,3"),
        (["--model=cifar_resnet", "--input=32,a"], "--input=32,a: expected the shape of one example"),
        (["--model=cifar_resnet", "--input=32,0,3"], "--input=32,0,3: expected the shape of one example"),
        (["--model=cifar_resnet", "--input=32,32,3", "--rule=stam: int8"], "'stam: int8' matches no layer; near it"),
    ],
)
def test_errors_are_one_line(capsys, arguments, message):
    with pytest.raises(SystemExit, match=message):
        run(capsys, *arguments)
