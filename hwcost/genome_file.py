"""The one file of a genome: what was chosen, by name, and what that means for each layer.

    {"choices": {"stem.format": "int8", …},
     "layers": {"stem": {"format": "int8", "granularity": "per_channel"}, …},
     "architecture": {}}

FLIQS, APQ and sensitivities write it; `fixed` policies, `launch.cost` and APQ's networks read it. Choices are of one
search space; layers mean the same whatever the space, so that a genome found under tied decisions, or by APQ, can be
priced and trained anywhere.
"""

import dataclasses
import json
import pathlib
from typing import Any, NamedTuple

_FORMAT_DECISION = ".format"


class GenomeFileError(ValueError):
    """A file that holds no genome, or one of another network; the message names the file."""


class LayerChoice(NamedTuple):
    """A layer's number format (`int4/int8` where weights and inputs differ) and which of its weights share a scale."""

    format: str
    granularity: str


@dataclasses.dataclass(frozen=True)
class Genome:
    """A genome by names.

    Attributes:
      choices: the option of each decision.
      layers: what each layer computes with, by path; empty where a file of an earlier version does not say.
      architecture: what builds the network whose layers these are, where it was searched too; else empty.
    """

    choices: dict[str, str]
    layers: dict[str, LayerChoice]
    architecture: dict[str, Any] = dataclasses.field(default_factory=dict)


def format_decision(path: str) -> str:
    """Name of the decision that picks the format of the layer at `path`."""
    return path + _FORMAT_DECISION


def names_genome_file(text: str) -> bool:
    """Whether a text that may name a number format or a genome file names a file."""
    return text.endswith(".json")


def write_genome(path: pathlib.Path, genome: Genome) -> None:
    """Writes a genome as JSON, whole or not at all."""
    temporary = path.with_name(f"{path.name}.tmp")
    layers = {name: choice._asdict() for name, choice in genome.layers.items()}
    document = {"choices": genome.choices, "layers": layers, "architecture": genome.architecture}
    temporary.write_text(json.dumps(document, indent=1) + "\n")
    temporary.rename(path)


def read_genome(path: pathlib.Path) -> Genome:
    """Reads what `write_genome` wrote, in this version or an earlier one, which stored choices alone.

    Raises:
      GenomeFileError: an unreadable file, or one that is none of these.
    """
    try:
        document = json.loads(path.read_text())
        choices = document["choices"]
        if not choices or not all(isinstance(text, str) for text in (*choices, *choices.values())):
            raise TypeError("choices are names of options by names of decisions")
        if "layers" not in document:
            return Genome(choices, _layers_of_earlier_version(choices))
        layers = {name: LayerChoice(**choice) for name, choice in document["layers"].items()}
        return Genome(choices, layers, dict(document["architecture"]))
    except OSError as error:
        raise GenomeFileError(f"cannot read the genome file {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise GenomeFileError(f"{path} holds no genome: {error!r}") from error


def _layers_of_earlier_version(choices: dict[str, str]) -> dict[str, LayerChoice]:
    """The layers that choices are about, where each is the format of one layer; its granularity is not known."""
    if any("*" in name or not name.endswith(_FORMAT_DECISION) for name in choices):
        return {}
    return {name.removesuffix(_FORMAT_DECISION): LayerChoice(option, "") for name, option in choices.items()}
