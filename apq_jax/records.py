"""Records: genomes and the accuracies of their networks, which predictors learn from (APQ, §4)."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from apq_jax.architectures import ArchitectureSpace


def float_genomes(space: ArchitectureSpace, count: int, key: jax.Array) -> np.ndarray:
    """int32[count, D]: random networks, of which bits do not matter and are the widest; more go on from fewer."""

    def one(number: jax.Array) -> jax.Array:
        return space.with_bits(space.sample(jax.random.fold_in(key, number)), space.largest)

    return np.asarray(jax.vmap(one)(jnp.arange(count)))


def quantized_genomes(space: ArchitectureSpace, count: int, key: jax.Array, *, policies: int) -> np.ndarray:
    """int32[count, D]: half random networks and bits, half random networks with `policies` bit policies each (§4).

    In turn, so that the first ones are of both halves alike, and more go on from fewer.
    """
    keys = jax.random.split(key, 3)

    def one(number: jax.Array) -> jax.Array:
        both = space.sample(jax.random.fold_in(keys[0], number))
        network = space.sample(jax.random.fold_in(keys[1], number // (2 * policies)))
        bits = space.sample(jax.random.fold_in(keys[2], number))
        return jnp.where(number % 2 == 0, both, space.made_valid(space.with_bits(network, bits)))

    return np.asarray(jax.vmap(one)(jnp.arange(count)))


def entry(genome: np.ndarray, accuracy: float) -> dict[str, Any]:
    """A record for a journal (launch/journal.py)."""
    return {"genome": np.asarray(genome).tolist(), "accuracy": accuracy}


def stacked(entries: Iterable[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Genomes int32[N, D] and accuracies float32[N] of a journal's entries."""
    genomes, accuracies = zip(*((found["genome"], found["accuracy"]) for found in entries), strict=True)
    return np.asarray(genomes, np.int32), np.asarray(accuracies, np.float32)
