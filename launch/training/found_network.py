"""What a search of architectures ends with: the network that it found, cut out, as an experiment of its own."""

import pathlib

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from aqt_like import interception
from aqt_like.path_rules import is_on_architecture
from fliqs_jax.models import elastic
from fliqs_jax.search import SearchState
from launch.training.budgets import ABSOLUTE
from launch.training.experiment import Experiment, prepare_experiment


def experiment_of(experiment: Experiment, file: pathlib.Path) -> Experiment:
    """The experiment of the network of a genome file, which says its sizes: only that genome is in it.

    Budgets are absolute: formats as units would be of the network found, not of that which the search began with.
    """
    config = experiment.config.copy_and_resolve_references()
    with config.unlocked():
        config.architecture = ConfigDict()
        config.rules = tuple(text for text in config.rules if not is_on_architecture(text))
        main, *further = (
            {"cost": name, "target": budget.target, "target_unit": ABSOLUTE}
            for name, budget in zip(experiment.costs, experiment.search.budgets, strict=True)
        )
        config.update({**main, "budgets": tuple(further), "targets": (), "baselines": ()})
        config.policy, config.genome = "fixed", str(file)
    return prepare_experiment(config, experiment.source)


def cut_out(experiment: Experiment, state: SearchState, genome: np.ndarray, like: SearchState) -> SearchState:
    """The state of the network found, with the weights of a family's `state`; the rest is from `like`, one of its own.

    Args:
      experiment: the search.
      state: at its end.
      genome: int32[D], of the search.
      like: an initial state of the network found (`experiment_of`).
    """
    search = experiment.search
    assert search.family
    chosen = experiment.plan.architecture_of(genome)
    _, variables = elastic.cut_out(search.family, state.params, state.batch_stats, chosen)
    paths = list(experiment.plan.layers_of(genome))
    profiles = interception.stacked_calibration(paths, state.calibration)
    rows = jnp.asarray([search.paths.index(path) for path in paths])
    return like._replace(
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        calibration=interception.by_layer(paths, profiles, "input"),
        clip_multiples=type(state.clip_multiples)(*(leaf[rows] for leaf in state.clip_multiples)),
    )
