"""What a finished run leaves: its frozen network, which is what it is measured on, and the float weights behind it.

Reports, teachers and exports read the network; sensitivities, fine-tuning and other formats start from the weights.
"""

import dataclasses
import functools
import itertools
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

import aqt_like
from aqt_like import interception, tensor_file
from aqt_like.freezing import check_freezable
from aqt_like.frozen_network import FrozenNetwork
from fliqs_jax.evaluation import make_evaluate, make_profile, make_recalibrate, quality_over
from fliqs_jax.models.elastic import Params, Weights
from fliqs_jax.policy import Policy, init_policy
from fliqs_jax.search import SearchState, init_state, quantized_variables, stacked_variables
from hwcost import carbon
from hwcost.genome_file import Genome, read_genome
from launch import data
from launch.config_files import load_config
from launch.data.contract import first_batch, named_arrays, on_device
from launch.training import found_network
from launch.training.checkpoints import ArrayKind, differing_arrays
from launch.training.controllers import NO_SEARCH
from launch.training.earlier_configs import of_today
from launch.training.experiment import Experiment, Trial, prepare_experiment
from launch.training.mesh import data_mesh, place_batch, replicated, split_batch
from launch.training.provenance import check_data, find_inputs
from launch.training.run_directory import CONFIG, GENOME, NETWORK, SUMMARY, WEIGHTS, read_json
from launch.training.run_summary import environment_summary, network_summary
from launch.training.settings import ConfigError, known_settings, unknown_keys

WEIGHTS_KIND, WEIGHTS_VERSION = "file of float weights", 1
_STORED = ("params", "batch_stats", "collections", "calibration", "clip_multiples")


def make_initial_state(experiment: Experiment) -> Callable[[Trial], SearchState]:
    """Makes `trial → initial state`; trials differ only in the policy, so it is compiled once for all of them."""

    # One program: op by op, each shape of each operation would be compiled by itself.
    @jax.jit
    def made(policy: Policy, key: jax.Array, weights: tuple[Weights, Params] | None) -> SearchState:
        inputs = zeros_like(experiment.source.example)
        state = init_state(experiment.search, policy, experiment.clip_multiples, key, inputs)
        return state if weights is None else state._replace(params=weights[0], batch_stats=weights[1])

    def initial(trial: Trial) -> SearchState:
        kind = trial.config.policy if trial.config.policy in NO_SEARCH else "searched"
        policy = init_policy(experiment.plan.space, kind, trial.genome)
        # Copied because a step donates its state, while other trials start from the same weights.
        weights = jax.tree.map(np.copy, experiment.weights)
        return made(policy, jax.random.key(trial.config.seed), weights)

    return initial


def initial_state(experiment: Experiment, trial: Trial) -> SearchState:
    """Initial state of a trial."""
    return make_initial_state(experiment)(trial)


def zeros_like(example: Any) -> Any:
    """A batch of one input of zeros, of the shapes and types of an example of a data set."""
    return jax.tree.map(lambda leaf: np.zeros((1, *leaf.shape), leaf.dtype), example)


def read_experiment(directory: pathlib.Path, **changes: Any) -> Experiment:
    """Experiment of a finished run, with some keys of its config changed; of a searched architecture, that found.

    Raises:
      ConfigError: `directory` has no finished run, its config cannot be used, or its data are others now.
    """
    if directory.is_file():
        raise ConfigError(f"{directory} is a file: expected the directory of a run")
    try:
        config = ConfigDict(of_today(read_json(directory / CONFIG)))
    except ValueError as error:
        raise ConfigError(f"{directory} holds no run: {error}") from error
    if not (directory / SUMMARY).exists():
        raise ConfigError(f"{directory} holds a run that is not finished: the command that started it goes on with it")
    if unknown := [key for key in changes if key not in flatten_dict(config.to_dict(), sep=".")]:
        raise ConfigError(f"{directory} has no setting {', '.join(unknown)}")
    config.update_from_flattened_dict(changes)
    for key in unknown_keys(config, known_settings(config)):  # Earlier versions let them pass; they have no effect.
        *sections, name = key.split(".")
        del functools.reduce(getattr, sections, config)[name]
    find_inputs(directory, config)
    try:
        defaults = load_config("common").data
        for key in data.unused_settings(config.data):  # Runs of earlier versions may have had them, to no effect.
            config.data[key] = defaults[key]
        experiment = prepare_experiment(config)
        if config.architecture:
            experiment = found_network.experiment_of(experiment, directory / GENOME)
    except ConfigError as error:
        raise ConfigError(f"{directory / CONFIG}: {error}") from error
    check_data(directory, experiment.source)
    return experiment


def read_quality(directory: pathlib.Path) -> float:
    """The quality on test that the summary of a finished run tells.

    Raises:
      ConfigError: it tells none.
    """
    summary = read_json(directory / SUMMARY)
    try:
        return float(summary[summary["quality"]])
    except (LookupError, TypeError) as error:
        raise ConfigError(f"{directory / SUMMARY} is not the summary of a run: {error!r}") from error


def read_genome_of(directory: pathlib.Path, experiment: Experiment) -> np.ndarray:
    """The genome that a finished run chose, int32[D]."""
    return experiment.plan.encode(read_genome(directory / GENOME))


class Networks:
    """Freezes, recalibrates and evaluates networks of an experiment; functions are compiled at their first call."""

    def __init__(self, experiment: Experiment, dataset: data.Dataset) -> None:
        search = experiment.search
        self._experiment, self._dataset, self._mesh = experiment, dataset, data_mesh()
        self._evaluate, self._recalibrate = jax.jit(make_evaluate(search)), make_recalibrate(search)
        self._profile, self._ready = make_profile(search), on_device(dataset)
        self._stacked_variables = jax.jit(lambda state, genome: stacked_variables(search, state, genome, True))

    def check(self) -> None:
        """Checks, before anything is trained or compiled, that networks can be frozen, evaluated and told of.

        Raises:
          FreezeError: they cannot be frozen; see `freezing.check_freezable`.
          data.DataError: a split cannot be evaluated.
        """
        experiment, trial = self._experiment, self._experiment.trials[0]
        genome = np.zeros(len(experiment.plan.space), np.int32)
        variables = jax.eval_shape(
            lambda: quantized_variables(
                experiment.search, initial_state(experiment, trial), jnp.asarray(genome), quantize_inputs=True
            )
        )
        check_freezable(*self._quantized(variables, genome), self._example(), train=False)
        batch = [self._first_batch(split) for split in ("valid", "test")][-1]
        jax.eval_shape(lambda variables, batch: self._evaluate(variables, self._ready(batch)), variables, batch)
        carbon.footprint(0.0, carbon.Rates(**trial.config.footprint))
        network_summary(experiment, genome)

    def _first_batch(self, split: str) -> data.Batch:
        """The first batch of a split that is evaluated; raises DataError if there is none that the network takes."""
        config, source = self._experiment.config, self._experiment.source
        batch = first_batch(self._dataset, split, batch_size=config.valid_batch_size)
        if batch is None:
            raise data.DataError(f"the {split} split of {config.data.name} is empty")
        size = config.valid_batch_size
        found = jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}", batch["input"])
        example = getattr(self._dataset, "example", source.example)
        expected = jax.tree.map(lambda leaf: f"{np.dtype(leaf.dtype)}{[size, *leaf.shape]}", example)
        if found != expected:
            raise data.DataError(
                f"the {split} split of {config.data.name} has inputs of {found} in a batch, expected {expected}"
            )
        return batch

    def _example(self) -> Any:
        return zeros_like(self._experiment.source.example)

    def _quantized(self, variables: dict[str, Any], genome: Any) -> tuple[aqt_like.QuantizedModel, dict[str, Any]]:
        """The quantised model of a genome, and its weights and statistics."""
        search, formats = self._experiment.search, self._experiment.plan.layer_formats(np.asarray(genome))
        network = aqt_like.QuantizedModel(search.model, formats, variables["formats"], search.quantizer)
        return network, {name: x for name, x in variables.items() if name not in ("formats", "calibration")}

    def variables_of_genome(self, state: SearchState, genome: jax.Array) -> dict[str, Any]:
        """The variables with formats, of a network that is not frozen."""
        variables = self._stacked_variables(state, genome)
        formats = interception.by_layer_on_host(self._experiment.search.paths, variables["formats"])
        return {**variables, "formats": jax.device_put(formats, replicated(self._mesh))}

    def frozen(self, state: SearchState, genome: jax.Array) -> FrozenNetwork:
        """The network of a genome, int32[D], under the weights and batch statistics of a state."""
        frozen = aqt_like.freeze(
            *self._quantized(self.variables_of_genome(state, genome), genome),
            self._example(),
            other_modes=({"train": True, "mutable": self._experiment.search.model.updated},),
            train=False,
        )
        genome_by_name = self._experiment.plan.named(np.asarray(genome))
        return dataclasses.replace(frozen, about=_about(self._experiment, self._dataset, genome_by_name))

    def profiled(self, state: SearchState, genome: jax.Array) -> SearchState:
        """The state with its inputs profiled on training batches under a genome, int32[D]; see `make_profile`."""
        batches = self._recalibration_batches() if self._experiment.config.recalibration_batches else None
        return self._profile(state, genome, batches) if batches else state

    def variables(self, network: FrozenNetwork) -> dict[str, Any]:
        """The variables of a frozen network with its codes, on all devices."""
        return jax.device_put(variables_of(network, self._experiment), replicated(self._mesh))

    def recalibrated(self, network: FrozenNetwork) -> FrozenNetwork:
        """The network with batch statistics, if it has any, of training batches under its own codes."""
        if not network.variables["batch_stats"]:
            return network
        variables = self._recalibrate(self.variables(network), self._recalibration_batches())
        statistics = jax.device_get(variables["batch_stats"])
        return dataclasses.replace(network, variables=network.variables | {"batch_stats": statistics})

    def in_float(self, state: SearchState) -> dict[str, Any]:
        """The variables of the network that is not quantised, with batch statistics, if any, of training batches."""
        variables = jax.device_put(state.variables, replicated(self._mesh))
        return self._recalibrate(variables, self._recalibration_batches()) if state.batch_stats else variables

    def _recalibration_batches(self) -> Iterator[Any]:
        config = self._experiment.config
        stream = self._dataset.train_batches(
            "train", batch_size=config.batch_size, first_step=self._experiment.search.total_steps, augmented=False
        )
        return itertools.islice(self._placed(stream), config.recalibration_batches)

    def _placed(self, batches: Iterable[data.Batch]) -> Iterator[Any]:
        """Batches on all devices, as networks take them."""
        return (self._ready(place_batch(batch, split_batch(self._mesh))) for batch in batches)

    def quality(self, variables: dict[str, Any], split: str) -> float:
        """Quality of a network with these variables and formats on a whole split."""
        batches = self._dataset.eval_batches(split, batch_size=self._experiment.config.valid_batch_size)
        return quality_over(self._experiment.search, self._evaluate, variables, self._placed(batches))


def variables_of(network: FrozenNetwork, experiment: Experiment) -> dict[str, Any]:
    """The variables of a frozen network with its codes, as the functions of `fliqs_jax.search` take them."""
    quantized, variables = network.bind(experiment.search.model, experiment.search.quantizer)
    return {**variables, "formats": quantized.collection}


def about_data(experiment: Experiment, dataset: data.Dataset) -> dict[str, Any]:
    """What a file says about the data that its network takes."""
    source = experiment.source
    arrays = named_arrays(source.example)
    shapes = {name: list(leaf.shape) for name, leaf in arrays}
    types = {name: np.dtype(leaf.dtype).name for name, leaf in arrays}
    alone = isinstance(source.example, jax.ShapeDtypeStruct)
    return {
        "name": experiment.config.data.name,
        "input_shape": shapes["input"] if alone else shapes,
        "input_type": types["input"] if alone else types,
        "normalization": getattr(dataset, "normalization", None),
        "classes": int(source.classes),
        "class_names": getattr(source, "class_names", None),
    }


def _about(experiment: Experiment, dataset: data.Dataset, genome: Genome) -> dict[str, Any]:
    """What a file says about its network beside the layers."""
    config = json.loads(experiment.config.to_json_best_effort())
    return {
        "model": config["model"],
        "genome": genome.document(),
        "data": about_data(experiment, dataset),
        "arithmetic": experiment.arithmetic.summary(experiment.search.input_quantization_step),
        "versions": environment_summary()["versions"],
    }


def read_network(directory: pathlib.Path, experiment: Experiment) -> FrozenNetwork:
    """The frozen network of a finished run.

    Raises:
      ConfigError: there is no such file, or it is of another model.
      DamagedFileError: it is not as it was written.
    """
    network = FrozenNetwork.load(_existing(directory / NETWORK))
    state = jax.eval_shape(lambda: initial_state(experiment, experiment.trials[0]))
    ours = state.variables
    _, variables = network.bind(experiment.search.model)
    _check_shapes(directory / NETWORK, _by_name(variables), _by_name(ours))
    if network.layers.keys() != set(experiment.search.paths):
        raise ConfigError(f"the model is not that of {directory / NETWORK}: it quantises {', '.join(network.layers)}")
    return network


def _check_shapes(path: pathlib.Path, stored: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Raises ConfigError if the variables of a file are not those of the model."""
    there, here = ({name: ArrayKind(array.shape) for name, array in arrays.items()} for arrays in (stored, ours))
    if told := differing_arrays(there, here, "the file"):
        raise ConfigError(f"the model is not that of {path}: these shapes differ: {told}")


def _existing(path: pathlib.Path) -> pathlib.Path:
    if not path.exists():
        raise ConfigError(
            f"{path.parent} has no {path.name}, as runs of earlier versions: `python -m launch.freeze {path.parent}` "
            "makes it"
        )
    return path


def told(directory: pathlib.Path) -> str:
    """A finished run in a few words: its name, its quality on test, its directory."""
    summary = read_json(directory / SUMMARY)
    return f"{summary['name']}, {100 * read_quality(directory):.2f} % {summary['quality']} on test, in {directory}"


def weights_of(state: SearchState) -> dict[str, Any]:
    """The fields of a state that `write_weights` writes."""
    return {name: getattr(state, name) for name in _STORED}


def write_weights(directory: pathlib.Path, state: SearchState) -> None:
    """Writes the float weights of a state, its other collections, input profiles and clip multiples.

    Raises:
      ConfigError: two variables have one name in the file.
    """
    stored = weights_of(state)
    arrays = {name: np.asarray(leaf) for name, leaf in _by_name(jax.device_get(stored)).items()}
    if len(arrays) < len(jax.tree.leaves(stored)):
        raise ConfigError("two variables have one name, if slashes separate those of modules: rename one of them")
    tensor_file.save(directory / WEIGHTS, arrays, {"kind": WEIGHTS_KIND, "version": WEIGHTS_VERSION})


def read_weights(directory: pathlib.Path, experiment: Experiment) -> SearchState:
    """A state with the weights that `write_weights` wrote; what they do not say is as at the start of training.

    Raises:
      ConfigError: there are none, or they are of another model.
      DamagedFileError: the file is not as it was written.
    """
    arrays, _ = tensor_file.load(_existing(directory / WEIGHTS), kind=WEIGHTS_KIND, version=WEIGHTS_VERSION)
    state = initial_state(experiment, experiment.trials[0])
    like = weights_of(state)
    _check_shapes(directory / WEIGHTS, arrays, _by_name(like))
    stored = jax.tree.map_with_path(lambda path, leaf: jnp.asarray(arrays[_name(path)], leaf.dtype), like)
    return state._replace(**stored)


def _by_name(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their names in files."""
    return {_name(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def _name(path: tuple[Any, ...]) -> str:
    """The name of a leaf in the file, as in `params/stem/conv/kernel`."""
    return "/".join(str(getattr(key, "key", getattr(key, "name", key))) for key in path)
