"""Click-through-rate model of FLIQS, A.13: an MLP of low-rank layers on embedded categories and numbers."""

import flax.linen as nn
import jax
import jax.numpy as jnp

NUMBERS, CATEGORIES = 13, 26


class Recommender(nn.Module):
    """MLP with four low-rank hidden layers (DCN-V2; Wang et al., 2021).

    Attributes:
      classes: 1, the logit of a click.
      width: factor on the 512 units of the hidden layers.
      rank: rank of each hidden layer.
      buckets: rows of each embedding table; categories are hashed to them in advance.
      embedding: channels of an embedded category.
    """

    classes: int
    width: float = 1.0
    rank: int = 128
    buckets: int = 10_000
    embedding: int = 16

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Logits, float32[B, classes], of float32[B, 39]: 13 numbers, then 26 bucket numbers."""
        del train  # Training and inference are the same.
        numbers, buckets = x[:, :NUMBERS], x[:, NUMBERS:].astype(jnp.int32)
        embedded = [
            nn.Embed(self.buckets, self.embedding, name=f"category{i + 1}")(buckets[:, i]) for i in range(CATEGORIES)
        ]
        x = jnp.concatenate([numbers, *embedded], axis=-1)
        for layer in range(4):
            x = nn.Dense(self.rank, use_bias=False, name=f"hidden{layer + 1}_down")(x)
            x = nn.relu(nn.Dense(int(512 * self.width), name=f"hidden{layer + 1}_up")(x))
        return nn.Dense(self.classes, name="classifier")(x)
