"""Records, the training data of predictors: genomes with the accuracies of their networks (APQ, §4)."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from apq_jax.network_space import NetworkSpace


def float_genomes(space: NetworkSpace, count: int, key: jax.Array) -> np.ndarray:
    """Random architectures at the widest bits, int32[count, D]; a larger count extends a smaller one."""

    def genome(number: jax.Array) -> jax.Array:
        return space.with_formats(space.sample(jax.random.fold_in(key, number)), space.largest)

    return np.asarray(jax.vmap(genome)(jnp.arange(count)))


def quantized_genomes(space: NetworkSpace, count: int, key: jax.Array, *, policies: int) -> np.ndarray:
    """Genomes to measure under quantisation, int32[count, D] (APQ, §4).

    Half of them have a random architecture each; the others share random architectures, `policies` genomes each. All
    have random bits. The two kinds alternate, and a larger count extends a smaller one.
    """
    keys = jax.random.split(key, 3)

    def genome(number: jax.Array) -> jax.Array:
        independent = space.sample(jax.random.fold_in(keys[0], number))
        network = space.sample(jax.random.fold_in(keys[1], number // (2 * policies)))
        bits = space.sample(jax.random.fold_in(keys[2], number))
        return jnp.where(number % 2 == 0, independent, space.made_valid(space.with_formats(network, bits)))

    return np.asarray(jax.vmap(genome)(jnp.arange(count)))


def learnable(networks: np.ndarray, held_out: int) -> np.ndarray:
    """The records to learn from, int[n], if the first `held_out` are to evaluate on: the others of other networks.

    A network in both would be known before it is evaluated, as the records that share one under other bits are.

    Args:
      networks: [N, F], what tells the network of each record from others, as the features of its architecture.
      held_out: number of the first records.
    """
    known = {network.tobytes() for network in np.ascontiguousarray(networks[:held_out])}
    new = [network.tobytes() not in known for network in np.ascontiguousarray(networks[held_out:])]
    return held_out + np.flatnonzero(new)


def entry(genome: np.ndarray, accuracy: float) -> dict[str, Any]:
    """A record as an entry of a journal (launch/journal.py)."""
    return {"genome": np.asarray(genome).tolist(), "accuracy": accuracy}


def stacked(entries: Iterable[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Genomes, int32[N, D], and accuracies, float32[N], of the entries of a journal."""
    genomes, accuracies = zip(*((record["genome"], record["accuracy"]) for record in entries), strict=True)
    return np.asarray(genomes, np.int32), np.asarray(accuracies, np.float32)
