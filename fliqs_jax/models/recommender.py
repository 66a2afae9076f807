"""Click-through-rate model of FLIQS, A.13: an MLP of low-rank layers on embedded categories and numbers."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from fliqs_jax.models import elastic
from fliqs_jax.models.elastic import FIXED, Choice, ElasticLayer, Family

NUMBERS, CATEGORIES = 13, 26
LAYERS = 4


class Recommender(nn.Module):
    """MLP with four low-rank hidden layers (DCN-V2; Wang et al., 2021).

    Attributes:
      classes: 1, the logit of a click.
      width: factor on the 512 units of the hidden layers.
      rank: rank of the hidden layers.
      widths, ranks: further factors on the units and the rank of each hidden layer; empty for 1.
      buckets: rows of each embedding table; categories are hashed to them in advance.
      embedding: channels of an embedded category.
    """

    classes: int
    width: float = 1.0
    rank: int = 128
    buckets: int = 10_000
    embedding: int = 16
    widths: tuple[float, ...] = ()
    ranks: tuple[float, ...] = ()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Logits, float32[B, classes], of float32[B, 39]: 13 numbers, then 26 bucket numbers."""
        del train  # Training and inference are the same.
        numbers, buckets = x[:, :NUMBERS], x[:, NUMBERS:].astype(jnp.int32)
        embedded = [
            nn.Embed(self.buckets, self.embedding, name=f"category{i + 1}")(buckets[:, i]) for i in range(CATEGORIES)
        ]
        x = jnp.concatenate([numbers, *embedded], axis=-1)
        factors = zip(self.ranks or (1.0,) * LAYERS, self.widths or (1.0,) * LAYERS, strict=True)
        for number, (rank, width) in enumerate(factors, start=1):
            x = nn.Dense(int(self.rank * rank), use_bias=False, name=f"hidden{number}_down")(x)
            x = nn.relu(nn.Dense(int(512 * self.width * width), name=f"hidden{number}_up")(x))
        return nn.Dense(self.classes, name="classifier")(x)


def family(base: Recommender, widths: Sequence[float] = (1.0,), ranks: Sequence[float] = (1.0,)) -> Family:
    """The networks like `base` in which each hidden layer chooses its units and its rank (FLIQS, A.13).

    Raises:
      ValueError: see `elastic.family_of_settings`.
    """
    width, rank = Choice("width", "widths", tuple(widths), 1.0), Choice("rank", "ranks", tuple(ranks), 1.0)
    names, layers, before = [f"hidden{number}" for number in range(1, LAYERS + 1)], [], FIXED
    for name in names:
        inside = rank.channels(name, [int(base.rank * factor) for factor in ranks])
        after = width.channels(name, [int(512 * base.width * factor) for factor in widths])
        layers += [ElasticLayer(f"{name}_down", before, inside), ElasticLayer(f"{name}_up", inside, after)]
        before = after
    layers.append(ElasticLayer("classifier", before))
    return elastic.family_of_settings(base, names, (width, rank), layers)
