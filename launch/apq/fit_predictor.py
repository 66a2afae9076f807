"""Fits the predictors, and tells how many quantised records they need with and without transfer (paper, Figure 7)."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from rich.progress import track
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from apq_jax import predictor
from apq_jax.architectures import ArchitectureSpace
from apq_jax.predictor import Agreement, Dense, Predictor
from launch.apq import measure_records
from launch.apq.pipeline import PREDICTOR, SUMMARY, Pipeline
from launch.training.experiment import ConfigError

FILES = {kind: f"{PREDICTOR}/{kind}.safetensors" for kind in ("float", "quantized")}


def fit(pipeline: Pipeline) -> None:
    """Fits the float predictor, transfers it, and compares with one from scratch at several numbers of records.

    A point of that curve is the mean over as many random choices of records as `predictor.repeats` says. What the
    search uses is the transferred predictor that has seen all records but those held out.

    Raises:
      ConfigError: fewer records than are held out.
    """
    config, space = pipeline.config.predictor, pipeline.space
    float_genomes, float_accuracies = measure_records.read(pipeline, "float")
    genomes, accuracies = measure_records.read(pipeline, "quantized")
    made_from = {
        "records": {"float": len(float_genomes), "quantized": len(genomes)},
        "settings": json.loads(config.to_json_best_effort()),
    }
    if pipeline.done(f"{PREDICTOR}/{SUMMARY}", **made_from):
        return
    if len(genomes) <= config.held_out:
        raise ConfigError(f"{len(genomes)} quantised records: expected more than predictor.held_out={config.held_out}")
    features = jax.jit(space.features)
    architecture = space.architecture_features
    train = partial(
        predictor.fit,
        steps=config.steps,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
    )
    keys = jax.random.split(jax.random.key(pipeline.config.seed + 2), 4)
    float_features = features(float_genomes)[:, :architecture]
    split = max(len(float_genomes) // 10, 1)
    fresh = predictor.init(architecture, float_accuracies, keys[0], hidden=config.hidden)
    of_float = train(fresh, float_features[split:], float_accuracies[split:], keys[1])
    float_agreement = predictor.agreement(predictor.predict(of_float, float_features[:split]), float_accuracies[:split])

    quantized, reached = features(genomes), jnp.asarray(accuracies)
    held = config.held_out
    seen = len(genomes) - held
    transferred = predictor.transferred(of_float, quantized.shape[1])

    def fitted(chosen: jax.Array, key: jax.Array, start: Predictor | None) -> Predictor:
        """From the records `chosen`, int32[N], and from scratch where there is no start."""
        key, init_key = jax.random.split(key)
        fresh = predictor.init(quantized.shape[1], reached[chosen], init_key, hidden=config.hidden)
        return train(start or fresh, quantized[chosen], reached[chosen], key, anchor=start)

    @partial(jax.jit, static_argnames="count")
    def held_out_predictions(key: jax.Array, start: Predictor | None, count: int) -> jax.Array:
        choice_key, fit_key = jax.random.split(key)
        chosen = held + jax.random.permutation(choice_key, seen)[:count]
        return predictor.predict(fitted(chosen, fit_key, start), quantized[:held])

    def agreement(count: int, start: Predictor | None) -> dict[str, object]:
        repeat_keys = jax.random.split(keys[2], config.repeats)
        return _mean(
            [predictor.agreement(held_out_predictions(key, start, count), accuracies[:held]) for key in repeat_keys]
        )

    counts = [count for count in config.counts if count < seen]
    curve = [
        {"records": count, "transferred": agreement(count, transferred), "from_scratch": agreement(count, None)}
        for count in track([*counts, seen], "predictors", console=pipeline.console)
    ]
    final = fitted(jnp.arange(held, len(genomes)), keys[3], transferred)
    (pipeline.workdir / PREDICTOR).mkdir(exist_ok=True)
    for kind, found in (("float", of_float), ("quantized", final)):
        save_file(_flat(found), pipeline.workdir / FILES[kind])
    pipeline.write(
        f"{PREDICTOR}/{SUMMARY}",
        {
            **made_from,
            "float": float_agreement._asdict() | {"records": len(float_genomes) - split},
            "quantized": curve,
            "final": predictor.agreement(predictor.predict(final, quantized[:held]), accuracies[:held])._asdict(),
        },
    )


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


def read(pipeline: Pipeline, kind: str = "quantized") -> Predictor:
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


def of_genomes(space: ArchitectureSpace, found: Predictor, genomes: jax.Array) -> jax.Array:
    """Predicted accuracies, float32[P], of genomes, int32[P, D]; a float predictor does not see bits."""
    features = space.features(genomes)
    return predictor.predict(found, features[:, : found.layers[0].kernel.shape[0]])
