import jax
import numpy as np
import pytest

from apq_jax import records
from apq_jax import space as space_lib
from apq_jax.records import Record, RecordError, RecordFile
from apq_jax.space import BIT_DECISIONS

SPACE = space_lib.find("digits")
HEAD = {"kind": "float"}


def test_records_go_on_where_they_stopped(tmp_path):
    path = tmp_path / "new" / "records.jsonl"
    file = RecordFile(path, HEAD)
    file.append([Record(np.arange(3), 0.5), Record(np.arange(3) + 1, 0.25)])
    file.close()
    path.write_text(path.read_text() + '{"genome": [1')
    again = RecordFile(path, HEAD)
    assert [record.accuracy for record in again.records] == [0.5, 0.25]
    again.append([Record(np.zeros(3, int), 1.0)])
    again.close()
    head, found = records.read(path)
    assert head == HEAD
    assert [record.genome.tolist() for record in found] == [[0, 1, 2], [1, 2, 3], [0, 0, 0]]


def test_damage_and_records_of_something_else_are_told(tmp_path):
    path = tmp_path / "records.jsonl"
    file = RecordFile(path, HEAD)
    file.append([Record(np.arange(3), 0.5), Record(np.arange(3), 0.75)])
    file.close()
    with pytest.raises(RecordError, match=r"not of .*quantized.*: give another --workdir"):
        RecordFile(path, {"kind": "quantized"})
    path.write_text(path.read_text().replace("0.5", "0.6"))
    with pytest.raises(RecordError, match=r"records.jsonl, line 2: its checksum is another"):
        RecordFile(path, HEAD)
    with pytest.raises(RecordError, match="cannot read records from"):
        records.read(tmp_path / "nothing.jsonl")


def test_half_of_the_quantised_genomes_share_networks():
    genomes = records.quantized_genomes(SPACE, 40, jax.random.key(0), policies=10)
    assert genomes.shape == (40, len(SPACE.search_space))
    assert np.asarray(SPACE.is_valid(genomes)).all()
    bits = np.concatenate([SPACE._columns[name] for name in BIT_DECISIONS])
    architectures = np.delete(genomes, bits, axis=1)
    assert len(np.unique(architectures[0::2], axis=0)) == 20
    assert len(np.unique(architectures[1::2], axis=0)) == 2
    assert len(np.unique(genomes[1::2], axis=0)) == 20
    np.testing.assert_array_equal(records.quantized_genomes(SPACE, 7, jax.random.key(0), policies=10), genomes[:7])


def test_float_genomes_differ_in_architecture_alone():
    genomes = records.float_genomes(SPACE, 30, jax.random.key(0))
    bits = np.concatenate([SPACE._columns[name] for name in BIT_DECISIONS])
    assert (genomes[:, bits] == SPACE.largest[bits]).all()
    assert len(np.unique(genomes, axis=0)) == 30
    np.testing.assert_array_equal(records.float_genomes(SPACE, 5, jax.random.key(0)), genomes[:5])
