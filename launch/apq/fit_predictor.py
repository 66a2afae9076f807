"""Fits the predictors, and tells how many quantised records they need with and without transfer (paper, Figure 7)."""

import json
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from rich.progress import track
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from apq_jax import predictor
from apq_jax.architectures import ArchitectureSpace
from apq_jax.predictor import Agreement, Dense, Predictor
from launch.apq.measure_records import read_records
from launch.apq.pipeline import PREDICTOR, SUMMARY, Pipeline
from launch.training.experiment import ConfigError

FILES = {kind: f"{PREDICTOR}/{kind}.safetensors" for kind in ("float", "quantized")}


def run(pipeline: Pipeline) -> None:
    """Fits the float predictor, transfers it, and compares with one from scratch at several numbers of records.

    What the search uses is the transferred predictor that has seen all records but those held out.

    Raises:
      ConfigError: fewer records than are held out.
    """
    config, space = pipeline.config.predictor, pipeline.space
    float_genomes, float_accuracies = read_records(pipeline, "float")
    genomes, accuracies = read_records(pipeline, "quantized")
    made_from = {
        "records": {"float": len(float_genomes), "quantized": len(genomes)},
        "settings": json.loads(config.to_json_best_effort()),
    }
    if pipeline.done(f"{PREDICTOR}/{SUMMARY}", **made_from):
        return
    if len(genomes) <= config.held_out:
        raise ConfigError(f"{len(genomes)} quantised records: expected more than predictor.held_out={config.held_out}")
    keys = jax.random.split(jax.random.key(pipeline.config.seed + 2), 4)
    features = jax.jit(space.features)
    float_features = features(float_genomes)[:, : space.architecture_features]
    float_predictor, float_agreement = _fit_float(config, float_features, float_accuracies, keys[:2])
    records = _QuantizedRecords(features(genomes), jnp.asarray(accuracies), config)
    transferred = predictor.transferred(float_predictor, records.features.shape[1])
    curve = _learning_curve(pipeline, records, transferred, keys[2])
    final = records.fitted(jnp.arange(config.held_out, len(genomes)), keys[3], transferred)
    (pipeline.workdir / PREDICTOR).mkdir(exist_ok=True)
    for kind, fitted in (("float", float_predictor), ("quantized", final)):
        save_file(_flat(fitted), pipeline.workdir / FILES[kind])
    pipeline.write(
        f"{PREDICTOR}/{SUMMARY}",
        {
            **made_from,
            "float": float_agreement,
            "quantized": curve,
            "final": records.agreement(records.held_out_predictions(final))._asdict(),
        },
    )


def _train(config: ConfigDict, *arguments: Any, **named: Any) -> Predictor:
    """`predictor.fit` as the config says."""
    settings = {key: config[key] for key in ("steps", "batch_size", "learning_rate", "weight_decay")}
    return predictor.fit(*arguments, **named, **settings)


def _fit_float(
    config: ConfigDict, features: jax.Array, accuracies: np.ndarray, keys: jax.Array
) -> tuple[Predictor, dict[str, Any]]:
    """The predictor of float accuracies, and its agreement with the tenth of the records that it has not seen."""
    held_out = max(len(features) // 10, 1)
    fresh = predictor.init(features.shape[1], accuracies, keys[0], hidden=config.hidden)
    fitted = _train(config, fresh, features[held_out:], accuracies[held_out:], keys[1])
    predictions = predictor.predict(fitted, features[:held_out])
    agreement = predictor.agreement(predictions, accuracies[:held_out])
    return fitted, agreement._asdict() | {"records": len(features) - held_out}


class _QuantizedRecords(NamedTuple):
    """Features, float32[N, F], and accuracies, float32[N], of the quantised records; the first are held out."""

    features: jax.Array
    accuracies: jax.Array
    config: ConfigDict

    def fitted(self, chosen: jax.Array, key: jax.Array, start: Predictor | None) -> Predictor:
        """A predictor from the records `chosen`, int32[n]: from `start`, or from scratch where there is none."""
        key, init_key = jax.random.split(key)
        chosen_features, chosen_accuracies = self.features[chosen], self.accuracies[chosen]
        fresh = predictor.init(self.features.shape[1], chosen_accuracies, init_key, hidden=self.config.hidden)
        return _train(self.config, start or fresh, chosen_features, chosen_accuracies, key, anchor=start)

    def held_out_predictions(self, fitted: Predictor) -> jax.Array:
        """Predictions for the records that are held out."""
        return predictor.predict(fitted, self.features[: self.config.held_out])

    def agreement(self, predictions: jax.Array) -> Agreement:
        """The agreement of predictions with the records that are held out."""
        return predictor.agreement(predictions, self.accuracies[: self.config.held_out])


def _learning_curve(
    pipeline: Pipeline, records: _QuantizedRecords, transferred: Predictor, key: jax.Array
) -> list[dict[str, Any]]:
    """Agreement against the number of quantised records, with and without transfer (APQ, Figure 7).

    Each point is the mean over as many random choices of records as `predictor.repeats` says.
    """
    config = pipeline.config.predictor
    seen = len(records.accuracies) - config.held_out
    keys = jax.random.split(key, config.repeats)

    @partial(jax.jit, static_argnames="count")
    def predictions(key: jax.Array, start: Predictor | None, count: int) -> jax.Array:
        choice_key, fit_key = jax.random.split(key)
        chosen = config.held_out + jax.random.permutation(choice_key, seen)[:count]
        return records.held_out_predictions(records.fitted(chosen, fit_key, start))

    def agreement(count: int, start: Predictor | None) -> dict[str, object]:
        return _mean([records.agreement(predictions(key, start, count)) for key in keys])

    counts = [count for count in config.counts if count < seen]
    return [
        {"records": count, "transferred": agreement(count, transferred), "from_scratch": agreement(count, None)}
        for count in track([*counts, seen], "predictors", console=pipeline.console)
    ]


def _mean(each: list[Agreement]) -> dict[str, object]:
    """The mean of agreements, and the pairwise accuracies that it is the mean of."""
    mean = Agreement(*np.mean(each, axis=0).tolist())
    return mean._asdict() | {"pairwise_of_each": [found.pairwise for found in each]}


def _flat(found: Predictor) -> dict[str, np.ndarray]:
    layers = {
        f"{number}.{name}": np.asarray(value)
        for number, layer in enumerate(found.layers)
        for name, value in layer._asdict().items()
    }
    return layers | {"mean": np.asarray(found.mean), "deviation": np.asarray(found.deviation)}


def read_predictor(pipeline: Pipeline, kind: str = "quantized") -> Predictor:
    """The predictor of quantised, or of float, accuracies.

    Raises:
      ConfigError: it is not fitted, or its file is damaged.
    """
    pipeline.read(f"{PREDICTOR}/{SUMMARY}")
    path = pipeline.workdir / FILES[kind]
    try:
        flat = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"cannot read the predictor {path}: {error}; remove {path.parent} to fit it anew") from error
    layers = tuple(
        Dense(jnp.asarray(flat[f"{number}.kernel"]), jnp.asarray(flat[f"{number}.bias"]))
        for number in range(len(flat) // 2 - 1)
    )
    return Predictor(layers, jnp.asarray(flat["mean"]), jnp.asarray(flat["deviation"]))


def predict_accuracies(space: ArchitectureSpace, found: Predictor, genomes: jax.Array) -> jax.Array:
    """Predicted accuracies, float32[P], of genomes, int32[P, D]; a float predictor does not see bits."""
    features = space.features(genomes)
    return predictor.predict(found, features[:, : found.layers[0].kernel.shape[0]])
