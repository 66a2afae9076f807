"""FLIQS on your own transformer and data: formats for a network that predicts the next character of a text.

    python -m examples.text_transformer

The config names model, data and loss by `module:function`. Query, key and value of an attention share one decision.
"""

import inspect
import pathlib
import sys
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console

from configs import common
from launch import data
from launch.reports import fliqs_page, recorded_runs
from launch.training import runs
from launch.training.experiment import prepare_experiment

LENGTH = 64


class Transformer(nn.Module):
    """Transformer with two blocks of causal attention."""

    classes: int

    @nn.compact
    def __call__(self, x):  # noqa: ANN001, ANN204
        """Logits of the next character, float32[B, T, classes], of characters, int32[B, T]."""
        mask = nn.make_causal_mask(x)
        positions = nn.Embed(LENGTH, 64)(jnp.arange(x.shape[1]))
        x = nn.Embed(self.classes, 64)(x) + positions
        for block in range(2):
            attention: Any = nn.MultiHeadDotProductAttention(num_heads=4, name=f"attention{block + 1}")
            x = x + attention(nn.LayerNorm()(x), mask=mask)
            hidden = nn.gelu(nn.Dense(256, name=f"mlp{block + 1}_up")(nn.LayerNorm()(x)))
            x = x + nn.Dense(64, name=f"mlp{block + 1}_down")(hidden)
        return nn.Dense(self.classes, name="logits")(nn.LayerNorm()(x))


def documentation() -> data.Arrays:
    """NumPy's documentation, cut into windows: inputs and labels are int32[N, LENGTH]."""
    text = "\n".join(inspect.getdoc(getattr(np, name)) or "" for name in sorted(np.__all__))
    codes = np.frombuffer(text.encode("ascii", "replace"), np.uint8).astype(np.int32)
    windows = codes[: len(codes) // (LENGTH + 1) * (LENGTH + 1)].reshape(-1, LENGTH + 1)
    train, test = (data.Split(part[:, :-1], part[:, 1:]) for part in (windows[:-512], windows[-512:]))
    return data.Arrays(train=train, test=test, classes=128)


def loss(logits, batch):  # noqa: ANN001, ANN201
    """Mean cross-entropy per character, in nats."""
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]))


def main(workdir: pathlib.Path, epochs: float = 8.0) -> None:
    """Searches, and prints the results."""
    config = common.get_config()
    common.short_search(config)
    config.model = {"name": "examples.text_transformer:Transformer"}
    config.data.name = "examples.text_transformer:documentation"
    config.loss = "examples.text_transformer:loss"
    config.rules = ("(query|key|value)$: tie",)
    config.optimizer.name, config.optimizer.learning_rate = "adamw", 3e-3
    config.data.valid_examples, config.target = 1000, 2.0
    config.baselines, config.epochs = ("int4", "bf16"), epochs
    directories = runs.run(prepare_experiment(config), workdir, Console(markup=False))
    fliqs_page.print_table(recorded_runs.read_runs(directories), Console(markup=False))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "runs/text_transformer"))
