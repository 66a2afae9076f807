import jax
import numpy as np

from apq_jax import architectures, records
from apq_jax.architecture_space import BIT_DECISIONS

SPACE = architectures.find("digits")


def test_entries_are_stacked():
    genomes, accuracies = records.stacked([records.entry(np.arange(3), 0.5), records.entry(np.zeros(3, int), 0.25)])
    assert genomes.dtype == np.int32
    np.testing.assert_array_equal(genomes, [[0, 1, 2], [0, 0, 0]])
    np.testing.assert_array_equal(accuracies, np.float32([0.5, 0.25]))


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


def test_what_is_held_out_shares_no_network_with_what_is_learnt_from():
    genomes = records.quantized_genomes(SPACE, 60, jax.random.key(0), policies=10)
    networks = np.asarray(SPACE.features(genomes))[:, : SPACE.architecture_features]
    names = [network.tobytes() for network in networks]
    for held_out in (25, 30, 40):
        learnt = records.learnable(networks, held_out)
        assert not {names[index] for index in learnt} & set(names[:held_out])
        same = (networks[:, None] == networks[None, :held_out]).all(axis=-1).any(axis=1)
        expected = [index for index in range(held_out, 60) if not same[index]]
        assert learnt.tolist() == expected
    assert len(records.learnable(networks, 40)) == 20  # whole groups are held out: nothing is lost
    assert len(records.learnable(networks, 30)) == 30 - 5 - 1  # half a group, and a network that was drawn again


def test_float_genomes_differ_in_architecture_alone():
    genomes = records.float_genomes(SPACE, 30, jax.random.key(0))
    bits = np.concatenate([SPACE._columns[name] for name in BIT_DECISIONS])
    assert (genomes[:, bits] == SPACE.largest[bits]).all()
    assert len(np.unique(genomes, axis=0)) == 30
    np.testing.assert_array_equal(records.float_genomes(SPACE, 5, jax.random.key(0)), genomes[:5])
