"""FLIQS on your own network, unchanged: formats for all layers of an MLP on scikit-learn's digits.

    python -m examples.digits_mlp

The model below has no quantisation code. This command lists the layer paths for rules, and the cost of each layer:

    python -m launch.layers --model=examples.digits_mlp:make_model --input=8,8,1
"""

import pathlib
import sys

import flax.linen as nn
from rich.console import Console

from configs import fliqs_digits
from launch.reports import fliqs_page, recorded_runs
from launch.training import runs
from launch.training.experiment import prepare_experiment


class Perceptron(nn.Module):
    """MLP with two hidden layers."""

    classes: int = 10

    @nn.compact
    def __call__(self, x):  # noqa: ANN001, ANN204
        """Logits, float32[B, classes], of images, float32[B, 8, 8, 1]."""
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(nn.Dense(64, name="hidden1")(x))
        x = nn.relu(nn.Dense(64, name="hidden2")(x))
        return nn.Dense(self.classes, name="logits")(x)


def make_model(classes: int = 10) -> nn.Module:
    """Makes the model; `--model` and `config.model.name` refer to this function."""
    return Perceptron(classes)


def main(workdir: pathlib.Path, epochs: float = 100.0) -> None:
    """Searches with the first layer at int8, and prints the results."""
    config = fliqs_digits.get_config()
    config.model = {"name": "examples.digits_mlp:make_model"}
    config.rules = ("hidden1: int8",)
    config.formats, config.target, config.target_unit = "int_s", 3.0, "int4"
    config.epochs, config.baselines = epochs, ("int8",)
    directories = runs.run(prepare_experiment(config), workdir, Console(markup=False))
    fliqs_page.print_table(recorded_runs.read_runs(directories), Console(markup=False))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "runs/digits_mlp"))
