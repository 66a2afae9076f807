import numpy as np
import pytest

from hwcost.space import Decision, SearchSpace

SPACE = SearchSpace((Decision("a", ("x", "y")), Decision("b", ("x", "y", "z"))))


def test_codec_round_trip():
    for genome in np.ndindex(2, 3):
        np.testing.assert_array_equal(SPACE.encode(SPACE.decode(genome)), genome)
    assert SPACE.decode([1, 2]) == {"a": "y", "b": "z"}
    assert list(SPACE.option_counts) == [2, 3]


@pytest.mark.parametrize("genome", [[0], [0, 0, 0], [2, 0], [0, -1]])
def test_genomes_that_do_not_fit_are_refused(genome):
    with pytest.raises(ValueError, match=r"genome of length|option"):
        SPACE.decode(genome)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"a": "x"}, r"missing \['b'\]"),
        ({"a": "x", "b": "x", "c": "x"}, r"unknown \['c'\]"),
        ({"a": "z", "b": "x"}, "a: no option 'z', expected one of x, y"),
    ],
)
def test_choices_that_do_not_fit_are_refused(choices, message):
    with pytest.raises(ValueError, match=message):
        SPACE.encode(choices)


def test_names_are_unique_and_found():
    with pytest.raises(ValueError, match="same name"):
        SearchSpace((Decision("a", ("x",)), Decision("a", ("y",))))
    assert SPACE.index("b") == 1
    with pytest.raises(ValueError, match="no decision 'c'"):
        SPACE.index("c")
