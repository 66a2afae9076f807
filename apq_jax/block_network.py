"""A network that APQ found, as the model of a run."""

import pathlib

from apq_jax import architectures
from fliqs_jax.models.inverted_residuals import BlockNetwork
from hwcost.genome_file import GenomeFileError, read_genome


def from_genome(genome: str) -> BlockNetwork:
    """The network of a genome file that APQ wrote: what a run names as its model.

    Raises:
      GenomeFileError: a file that cannot be read, or whose architecture was not searched.
      ValueError: a space that there is not, or choices that do not fit it.
    """
    named = read_genome(pathlib.Path(genome))
    if set(named.architecture) != {"space", "image_size"}:
        raise GenomeFileError(f"{genome} says of the architecture {named.architecture}: expected space and image_size")
    space = architectures.find(named.architecture["space"], named.architecture["image_size"])
    return space.network(space.search_space.encode(named.choices))
