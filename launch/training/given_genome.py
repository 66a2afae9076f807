"""The genome file of a config: what it says of the network to train, and whether that is the one of the config."""

import inspect
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from apq_jax import block_network
from aqt_like.formats import format_space
from fliqs_jax import models
from fliqs_jax.models.elastic import Family
from hwcost.format_plan import FormatPlan
from hwcost.genome_file import Genome, GenomeFileError, names_genome_file, read_genome
from hwcost.layer_variants import NO_ARCHITECTURE, Architecture
from launch.training.settings import ConfigError


def read(config: ConfigDict) -> Genome | None:
    """Genome from the genome file of the config, or None if the config names no file.

    Raises:
      ConfigError: there is a genome without the policy for it, or the other way round.
      GenomeFileError: the file cannot be read, or tells of a network that is none of ours.
    """
    if config.policy == "fixed" and not config.genome:
        raise ConfigError("policy='fixed' needs --config.genome, a format name or a genome file")
    if config.policy != "fixed" and config.genome:
        raise ConfigError(f"genome={config.genome!r} is for --config.policy=fixed; the policy is {config.policy!r}")
    if not names_genome_file(config.genome):
        return None
    named = read_genome(pathlib.Path(config.genome))
    try:
        named = block_network.of_today(named)
    except ValueError as error:
        raise GenomeFileError(f"genome={config.genome!r}: {error}") from error
    network = named.architecture.get("name")
    if network is not None and network not in (*models.MODELS,):  # No code of a file's choice is run.
        known = ", ".join(models.MODELS)
        raise GenomeFileError(f"genome={config.genome!r}: architecture.name={network!r}: expected one of {known}")
    return named


def with_network_of(config: ConfigDict, given: Genome | None) -> ConfigDict:
    """The config with the network that a genome file tells of.

    If the file tells the whole network, as those of APQ's spaces do, that takes the place of `config.model`, and the
    formats of the file join those of the config. Else it tells what `config.model` leaves open, such as widths.
    """
    # The model of runs of earlier versions is made from the file.
    if given is None or not given.architecture or "genome" in config.model:
        return config
    whole = "name" in given.architecture
    if config.architecture and not whole:
        return config
    config = config.copy_and_resolve_references()
    with config.unlocked():
        if whole:
            config.model, config.architecture = ConfigDict(given.architecture), ConfigDict()
            if config.formats:
                names = [fmt.name for fmt in format_space(config.formats)]
                config.formats = ",".join(dict.fromkeys([*names, *formats_in(given)]))
        else:
            taken = inspect.signature(models.find(config.model.name).build).parameters
            told = {name: value for name, value in given.architecture.items() if name in taken}
            config.model = ConfigDict({**told, **config.model.to_dict()})
    return config


def remark(asked: ConfigDict, used: ConfigDict) -> str:
    """A line for the user if the network of a genome file took the place of that of the config; empty if not."""
    if asked.model.name == used.model.name:
        return ""
    return f"network: {used.model.name} as told by {used.genome}, in the place of model.name={asked.model.name}"


def architecture_of(given: Genome | None) -> Architecture:
    """What a plan is told of a network that is not searched: what its genome file says of it."""
    return NO_ARCHITECTURE if given is None else NO_ARCHITECTURE._replace(settings=lambda _: given.architecture)


def formats_in(given: Genome) -> list[str]:
    """The names of the formats in a genome, in order."""
    return sorted({choice.format for choice in given.layers.values()})


def check_network(
    config: ConfigDict, family: Family | None, plan: FormatPlan, given: Genome, genome: np.ndarray
) -> None:
    """Checks that a genome is for the network of the config.

    Raises:
      GenomeFileError: the network has other settings than the file tells.
    """
    if "genome" in config.model:  # The model is built from a genome file, as those that APQ found.
        return
    settings = config.model.to_dict()
    if family:
        network = family.network(plan.architecture_of(genome))
        settings |= {name: getattr(network, name) for name in config.architecture}
    check_settings(given, settings)


def check_settings(given: Genome, settings: Mapping[str, Any]) -> None:
    """Checks that a network with these settings is that of a genome file, as far as the file tells them.

    Raises:
      GenomeFileError: it is not.
    """
    for name, value in given.architecture.items():
        if (ours := _plain(settings.get(name))) != _plain(value):
            raise GenomeFileError(f"it is of a network with {name}={value}, and model.{name} is {ours} here")


def _plain(value: Any) -> Any:
    return list(map(_plain, value)) if isinstance(value, list | tuple) else value
