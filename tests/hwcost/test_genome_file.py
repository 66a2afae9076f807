import json

import numpy as np
import pytest

from aqt_like.formats import format_space
from hwcost.format_plan import format_plan
from hwcost.genome_file import Genome, GenomeFileError, LayerChoice, read_genome, write_genome
from hwcost.workload import LayerSpec

FORMATS = format_space("int_s")
PATHS = ("stem", "block1/conv", "block2/conv", "head")
LAYERS = tuple(
    LayerSpec(path, "dense", 4, 4, (), (), (), (), 1, macs=100 * (i + 1), weights=16) for i, path in enumerate(PATHS)
)
PLAIN = format_plan(LAYERS, FORMATS)
TIED = format_plan(LAYERS, FORMATS, ["block[12]: tie", "head: per_tensor"])


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "genome.json"
    genome = Genome({"a": "x", "stem.format": "int4"}, {"stem": LayerChoice("int4", "per_tensor")}, {"space": "digits"})
    write_genome(path, genome)
    assert read_genome(path) == genome
    assert [file.name for file in tmp_path.iterdir()] == ["genome.json"]


def test_a_genome_is_that_of_its_plan_again():
    for plan, genome in ((PLAIN, [0, 1, 2, 1]), (TIED, [2, 0, 1])):
        named = plan.named(genome)
        np.testing.assert_array_equal(plan.encode(named), genome)
    assert named.choices == {"stem.format": "bf16", "*/conv.format": "int4", "head.format": "int8"}
    assert named.layers["block2/conv"][:2] == ("int4", "per_channel")
    assert named.layers["head"] == LayerChoice("int8", "per_tensor", LAYERS[-1].macs)


def test_layers_mean_the_same_in_another_space():
    """A genome that was found under ties, in a plan without them; and in one that ties and orders otherwise."""
    loose = format_plan(LAYERS, FORMATS[::-1], ["head: per_tensor"])
    tied = TIED.named([2, 0, 1])
    np.testing.assert_array_equal(loose.encode(tied), [0, 2, 2, 1])
    np.testing.assert_array_equal(TIED.encode(loose.named([0, 2, 2, 1])), [2, 0, 1])


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ({"format": "bf16"}, "layer head has format bf16 in layers, and int8 in choices"),
        ({"format": 4}, "format and granularity are names"),
        ({"granularity": None}, "format and granularity are names"),
        ({"colour": "red"}, "holds no genome: TypeError"),
    ],
)
def test_layers_that_were_changed_by_hand_are_refused(tmp_path, layer, message):
    path = tmp_path / "genome.json"
    write_genome(path, PLAIN.named([0, 1, 2, 1]))
    document = json.loads(path.read_text())
    assert document["layers"]["head"]["format"] == "int8"
    document["layers"]["head"] |= layer
    path.write_text(json.dumps(document))
    with pytest.raises(GenomeFileError, match=message):
        read_genome(path)


def test_files_of_earlier_versions_are_read(tmp_path):
    path = tmp_path / "genome.json"
    path.write_text(json.dumps({"choices": PLAIN.space.decode([0, 1, 2, 1])}))
    assert read_genome(path).layers["block2/conv"] == LayerChoice("bf16", "")
    np.testing.assert_array_equal(PLAIN.encode(read_genome(path)), [0, 1, 2, 1])
    # Ties hide which layers a decision is about: such a file fits its own space alone.
    path.write_text(json.dumps({"choices": TIED.space.decode([2, 0, 1])}))
    assert read_genome(path).layers == {}
    np.testing.assert_array_equal(TIED.encode(read_genome(path)), [2, 0, 1])
    with pytest.raises(GenomeFileError, match=r"another search space: .*missing \['block1/conv.format'"):
        PLAIN.encode(read_genome(path))


@pytest.mark.parametrize(
    ("genome", "message"),
    [
        (PLAIN.named([0, 1, 2, 1]), r"\*/conv.format: tied layers with unlike formats; block2/conv has bf16"),
        (PLAIN.named([0, 1, 1, 1]), r"head is to have per_channel weights, but has per_tensor ones here: add the rule"),
        (format_plan(LAYERS[:3], FORMATS).named([0, 0, 0]), "only one of the two has head"),
        (
            format_plan(LAYERS, format_space("int5,int8")).named([0, 0, 0, 0]),
            "stem is to have int5, but may have int4,",
        ),
    ],
)
def test_a_genome_that_does_not_fit_is_refused(genome, message):
    with pytest.raises(GenomeFileError, match=message):
        TIED.encode(genome)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[1]",
        "{}",
        '{"choices": {"a": "x", "a": "y"}, "layers": {}, "architecture": {}}',
        '{"choices": {}}',
        '{"choices": {"a": 1}}',
        '{"choices": {"a": "x"}, "layers": {"a": 1}}',
    ],
)
def test_other_files_are_refused(tmp_path, text):
    path = tmp_path / "genome.json"
    path.write_text(text)
    with pytest.raises(GenomeFileError, match=r"genome\.json holds no genome"):
        read_genome(path)


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(GenomeFileError, match=r"cannot read the genome file .*none\.json: No such file"):
        read_genome(tmp_path / "none.json")
