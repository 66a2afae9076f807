import pytest

from launch.data.contract import NORMALIZED
from launch.training import teaching
from launch.training.settings import ConfigError

NORMALIZATION = {"formula": NORMALIZED, "x": "pixels of 0…255", "mean": [77.0], "deviation": [96.0]}
OURS = {
    "name": "digits",
    "input_shape": [8, 8, 1],
    "input_type": "float32",
    "normalization": NORMALIZATION,
    "classes": 10,
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, None),
        ({"normalization": NORMALIZATION | {"mean": [78.0]}}, None),  # a run with another seed
        ({"name": "shifted"}, "T was trained on data.name 'shifted', here it is 'digits'"),
        ({"classes": 11}, "T knows classes 11, here it is 10"),
        ({"input_shape": [4, 4, 1]}, r"T knows inputs of shape \[4, 4, 1\], here it is \[8, 8, 1\]"),
        ({"input_type": "uint8"}, "T knows inputs of type 'uint8', here it is 'float32'"),
        ({"normalization": None}, "otherwise: in a way that the data do not tell, here by mean 77 and deviation 96"),
        ({"normalization": NORMALIZATION | {"mean": [127.5]}}, "otherwise: by mean 128 and deviation 96, here by mean"),
        ({"normalization": NORMALIZATION | {"deviation": [255.0]}}, "and deviation 255, here by mean"),
        ({"normalization": NORMALIZATION | {"x": "pixels of 0…1"}}, "normalised otherwise"),
        ({"normalization": NORMALIZATION | {"mean": [77.0] * 3}}, "normalised otherwise"),
    ],
)
def test_a_teacher_saw_the_same_data_normalised_alike(changes, message):
    if message is None:
        teaching._check_alike("T", OURS | changes, OURS)
        return
    with pytest.raises(ConfigError, match=message):
        teaching._check_alike("T", OURS | changes, OURS)
