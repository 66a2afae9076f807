"""Networks of genome files that earlier versions of APQ wrote, which name a space and leave the rest to its choices."""

import dataclasses
import pathlib

from apq_jax import architectures
from fliqs_jax.models import inverted_residuals
from fliqs_jax.models.inverted_residuals import BlockNetwork
from hwcost.genome_file import Genome, GenomeFileError, read_genome

_EARLIER = {"space", "image_size"}


def of_today(genome: Genome) -> Genome:
    """A genome of any version with the settings of its network in the place of the name of a space; others as they are.

    Raises:
      ValueError: a space that there is not, or choices that do not fit it.
    """
    if set(genome.architecture) != _EARLIER:
        return genome
    return dataclasses.replace(genome, architecture=inverted_residuals.settings_of(_network(genome)))


def _network(genome: Genome) -> BlockNetwork:
    space = architectures.find(genome.architecture["space"], genome.architecture["image_size"])
    return space.network(space.search_space.encode(genome.choices))


def from_genome(genome: str) -> BlockNetwork:
    """The network of such a file, which runs of earlier versions name as their model.

    Raises:
      GenomeFileError: a file that cannot be read, or whose architecture was not searched.
      ValueError: a space that there is not, or choices that do not fit it.
    """
    named = read_genome(pathlib.Path(genome))
    if set(named.architecture) != _EARLIER:
        raise GenomeFileError(f"{genome} says of the architecture {named.architecture}: expected space and image_size")
    return _network(named)
