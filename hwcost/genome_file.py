"""Genome files: the choices of a genome by name, and the format of each layer that follows.

    {"choices": {"stem.format": "int8", …},
     "layers": {"stem": {"format": "int8", "granularity": "per_channel", "macs": 110592}, …},
     "architecture": {}}

FLIQS, APQ and sensitivity analyses write it; `fixed` policies, `launch.cost` and APQ's networks read it. Choices refer
to one search space; layers are independent of it, so that a genome from tied decisions or from APQ can be priced and
trained anywhere.
"""

import dataclasses
import json
import pathlib
from typing import Any, NamedTuple

from hwcost.strict_json import named_once

_FORMAT_DECISION = ".format"


class GenomeFileError(ValueError):
    """Raised for a file that holds no genome, and for a genome that does not fit a plan."""


class LayerChoice(NamedTuple):
    """What a genome means for one layer.

    Attributes:
      format: name of the format; `int4/int8` if weights and inputs differ.
      granularity: name of the granularity of the weights; `""` if unknown.
      macs: multiply-accumulates (MACs) of the layer in the network that was searched; None if unknown.
    """

    format: str
    granularity: str
    macs: int | None = None


@dataclasses.dataclass(frozen=True)
class Genome:
    """A genome in named form.

    Attributes:
      choices: option name of each decision, by decision name.
      layers: format and granularity of each layer, by path; empty if a file of an earlier version lacks them.
      architecture: arguments that build the network, if its architecture was searched; else empty.
    """

    choices: dict[str, str]
    layers: dict[str, LayerChoice]
    architecture: dict[str, Any] = dataclasses.field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """The genome as JSON holds it."""
        layers = {name: choice._asdict() for name, choice in self.layers.items()}
        return {"choices": self.choices, "layers": layers, "architecture": self.architecture}


def format_decision(path: str) -> str:
    """The name of the decision on the format of the layer at `path`."""
    return path + _FORMAT_DECISION


def decides_format(decision: str) -> bool:
    """Whether a decision, by its name, is on the format of a layer, not on an architecture."""
    return decision.endswith(_FORMAT_DECISION)


def names_genome_file(text: str) -> bool:
    """Whether `text`, a format name or the path of a genome file, is a path."""
    return text.endswith(".json")


def write_genome(path: pathlib.Path, genome: Genome) -> None:
    """Writes a genome file (JSON), atomically."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(json.dumps(genome.document(), indent=1) + "\n")
    temporary.rename(path)


def read_genome(path: pathlib.Path) -> Genome:
    """Reads a genome file of this version or an earlier one, which stored only choices.

    Raises:
      GenomeFileError: the file cannot be read, or holds no genome.
    """
    try:
        document = json.loads(path.read_text(), object_pairs_hook=named_once)
        choices = document["choices"]
        if not choices or not all(isinstance(text, str) for text in (*choices, *choices.values())):
            raise TypeError("choices are names of options by names of decisions")
        if "layers" not in document:
            return Genome(choices, _layers_of_earlier_version(choices))
        layers = {name: LayerChoice(**choice) for name, choice in document["layers"].items()}
        for name, choice in layers.items():
            if not isinstance(choice.format, str) or not isinstance(choice.granularity, str):
                raise TypeError(f"layer {name} has {choice}: format and granularity are names")
            if (option := choices.get(format_decision(name), choice.format)) != choice.format:
                raise ValueError(f"layer {name} has format {choice.format} in layers, and {option} in choices")
        return Genome(choices, layers, dict(document["architecture"]))
    except OSError as error:
        raise GenomeFileError(f"cannot read the genome file {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise GenomeFileError(f"{path} holds no genome: {error!r}") from error


def _layers_of_earlier_version(choices: dict[str, str]) -> dict[str, LayerChoice]:
    """The layers of choices that are each the format of one layer, with unknown granularity; else none."""
    if any("*" in name or not name.endswith(_FORMAT_DECISION) for name in choices):
        return {}
    return {name.removesuffix(_FORMAT_DECISION): LayerChoice(option, "") for name, option in choices.items()}
