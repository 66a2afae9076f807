"""The predictor step: fits the predictors, and measures how many quantised records they need (APQ, Figure 7)."""

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from ml_collections import ConfigDict
from rich.progress import track
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from apq_jax import predictor, records
from apq_jax.network_space import NetworkSpace
from apq_jax.predictor import Agreement, Dense, Predictor
from launch.apq.measure_records import read_records
from launch.apq.pipeline import PREDICTOR, RECORD_FILES, SUMMARY, Pipeline
from launch.training.provenance import file_digest
from launch.training.run_directory import Inputs
from launch.training.settings import ConfigError

FILES = {kind: f"{PREDICTOR}/{kind}.safetensors" for kind in ("float", "quantized", "from_scratch")}
"""The predictors: of float networks, of quantised ones by transfer from it, and of those without (APQ, Table 2)."""


def run(pipeline: Pipeline) -> None:
    """Fits the float predictor, transfers it, and compares it with training from scratch at several record counts.

    The search uses the transferred predictor fitted on all records that are not held out (APQ, Algorithm 1, line 3);
    that from scratch on the same records is for the search without transfer (APQ, Table 2: Ours-A).

    Raises:
      ConfigError: no records are left beside those held out; a predictor is not finite; or there are predictors, of
        other records.
    """
    config, space = pipeline.config.predictor, pipeline.space
    float_genomes, float_accuracies = read_records(pipeline, "float")
    genomes, accuracies = read_records(pipeline, "quantized")
    if len(genomes) <= config.held_out:
        raise ConfigError(f"{len(genomes)} quantised records: expected more than predictor.held_out={config.held_out}")
    asked = {
        "records": {"float": len(float_genomes), "quantized": len(genomes)},
        "settings": json.loads(config.to_json_best_effort()),
    }
    if pipeline.has(f"{PREDICTOR}/{SUMMARY}"):
        check_records(pipeline)
    if pipeline.done(f"{PREDICTOR}/{SUMMARY}", **asked):
        return
    keys = jax.random.split(jax.random.key(pipeline.config.seed + 2), 4)
    features = jax.jit(space.features)
    float_features = features(float_genomes)[:, : space.architecture_features]
    float_predictor, float_agreement = _fit_float(pipeline, float_features, float_accuracies, keys[:2])
    quantized_features = features(genomes)
    learnt = _learnable(pipeline, "quantized", quantized_features[:, : space.architecture_features], config.held_out)
    quantized = _QuantizedRecords(quantized_features, jnp.asarray(accuracies), learnt, config)
    transferred = predictor.transferred(float_predictor, quantized_features.shape[1])
    fit = jax.jit(quantized.fitted)
    curve = _learning_curve(pipeline, quantized, fit, transferred, keys[2])
    fitted_by_kind = {
        "float": float_predictor,
        "quantized": fit(learnt, len(learnt), keys[3], transferred, True),
        "from_scratch": fit(learnt, len(learnt), keys[3], transferred, False),
    }
    for kind, fitted in fitted_by_kind.items():
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(fitted)):
            raise ConfigError(
                f"the {kind} predictor is not finite: expected finite accuracies in the records, and a "
                f"predictor.learning_rate lower than {config.learning_rate}"
            )
    (pipeline.workdir / PREDICTOR).mkdir(exist_ok=True)
    for kind, fitted in fitted_by_kind.items():
        save_file(_flat(fitted), pipeline.workdir / FILES[kind])
    pipeline.write(
        f"{PREDICTOR}/{SUMMARY}",
        {
            **asked,
            "inputs": _inputs(pipeline, asked["records"]),
            "files": {kind: file_digest(pipeline.workdir / file) for kind, file in FILES.items()},
            "float": float_agreement,
            "quantized": curve,
            "final": quantized.agreement(fitted_by_kind["quantized"])._asdict(),
            "final_from_scratch": quantized.agreement(fitted_by_kind["from_scratch"])._asdict(),
        },
    )


def _inputs(pipeline: Pipeline, counts: Mapping[str, int]) -> Inputs:
    """Digests of the first `counts[kind]` records of each kind that is there, or of all if there are fewer."""
    found = {}
    for kind in RECORD_FILES:
        if pipeline.has(RECORD_FILES[kind]):
            pairs = zip(*read_records(pipeline, kind), strict=True)
            first = [(genome.tolist(), float(accuracy)) for genome, accuracy in pairs][: counts[kind]]
            found[f"{kind} records"] = hashlib.sha256(json.dumps(first).encode()).hexdigest()
    return found


def check_records(pipeline: Pipeline) -> None:
    """Checks that the fitted predictors were made from the records that are there; more may have come since.

    Raises:
      ConfigError: they were made from others.
      JournalError: records are of another once-for-all network, or damaged.
    """
    summary = pipeline.read(f"{PREDICTOR}/{SUMMARY}")
    pipeline.check_made_from(f"{PREDICTOR}/{SUMMARY}", _inputs(pipeline, summary["records"]))


def _train(config: ConfigDict, *arguments: Any, **named: Any) -> Predictor:
    """`predictor.fit` with the settings of the config."""
    settings = {key: config[key] for key in ("steps", "batch_size", "learning_rate", "weight_decay")}
    return predictor.fit(*arguments, **named, **settings)


def _learnable(pipeline: Pipeline, kind: str, networks: jax.Array, held_out: int) -> jax.Array:
    """See `records.learnable`; tells how many records are left out.

    Raises:
      ConfigError: no record is left.
    """
    learnt = records.learnable(np.asarray(networks), held_out)
    if left_out := len(networks) - held_out - len(learnt):
        pipeline.note(f"{left_out} of {len(networks)} {kind} records are left out: their networks are held out")
    if not len(learnt):
        raise ConfigError(
            f"predictor.held_out={held_out}: the other {kind} records are of the networks held out: expected more "
            f"records.{kind}, or fewer held out"
        )
    return jnp.asarray(learnt)


def _fit_float(
    pipeline: Pipeline, features: jax.Array, accuracies: np.ndarray, keys: jax.Array
) -> tuple[Predictor, dict[str, Any]]:
    """The float predictor, and its agreement with the tenth of the records that is held out."""
    config, held_out = pipeline.config.predictor, max(len(features) // 10, 1)
    learnt = _learnable(pipeline, "float", features, held_out)
    untrained = predictor.init(features.shape[1], accuracies, keys[0], hidden=config.hidden)
    fitted = _train(config, untrained, features[learnt], jnp.asarray(accuracies)[learnt], keys[1])
    predictions = predictor.predict(fitted, features[:held_out])
    agreement = predictor.agreement(predictions, accuracies[:held_out])
    return fitted, agreement._asdict() | {"records": len(learnt)}


class _QuantizedRecords(NamedTuple):
    """Features, float32[N, F], and accuracies, float32[N], of the quantised records.

    The first ones are held out, and those at `learnt`, int32[n], are learnt from.
    """

    features: jax.Array
    accuracies: jax.Array
    learnt: jax.Array
    config: ConfigDict

    def fitted(
        self, indices: jax.Array, count: ArrayLike, key: jax.Array, transferred: Predictor, transfer: ArrayLike
    ) -> Predictor:
        """The predictor fitted on the first `count` of the records `indices`, int32[n], from `transferred` or scratch.

        `transfer`, bool scalar, says which; it and the count may be traced, so one compilation serves all.
        """
        key, init_key = jax.random.split(key)
        features, accuracies = self.features[indices], self.accuracies[indices]
        untrained = predictor.init(self.features.shape[1], accuracies, init_key, hidden=self.config.hidden, count=count)
        start = jax.tree.map(lambda old, new: jnp.where(transfer, old, new), transferred, untrained)
        anchor = jax.tree.map(lambda old: jnp.where(transfer, old, 0.0), transferred)
        return _train(self.config, start, features, accuracies, key, count=count, anchor=anchor)

    def agreement(self, fitted: Predictor) -> Agreement:
        """The agreement of a predictor with the records held out."""
        held_out = self.config.held_out
        return predictor.agreement(predictor.predict(fitted, self.features[:held_out]), self.accuracies[:held_out])


def _learning_curve(
    pipeline: Pipeline,
    quantized: _QuantizedRecords,
    fit: Callable[..., Predictor],
    transferred: Predictor,
    key: jax.Array,
) -> list[dict[str, Any]]:
    """Agreement by number of quantised records, with and without transfer (APQ, Figure 7).

    Each point is the mean over `predictor.repeats` random choices of records.
    """
    config = pipeline.config.predictor
    available = len(quantized.learnt)
    keys = jax.random.split(key, config.repeats)

    def fitted(key: jax.Array, count: int, *, transfer: bool) -> Predictor:
        choice_key, fit_key = jax.random.split(key)
        indices = quantized.learnt[jax.random.permutation(choice_key, available)]
        return fit(indices, count, fit_key, transferred, transfer)

    def agreement(count: int, *, transfer: bool) -> dict[str, object]:
        pipeline.stop_if_asked()
        return _mean([quantized.agreement(fitted(key, count, transfer=transfer)) for key in keys])

    counts = [count for count in config.counts if count < available]
    if too_many := [count for count in config.counts if count > available]:
        pipeline.note(
            f"predictor.counts: {available} records to learn from, instead of {', '.join(map(str, too_many))}"
        )
    return [
        {
            "records": count,
            "transferred": agreement(count, transfer=True),
            "from_scratch": agreement(count, transfer=False),
        }
        for count in track([*counts, available], "predictors", console=pipeline.console)
    ]


def _mean(agreements: list[Agreement]) -> dict[str, object]:
    """The mean of several agreements, with the pairwise accuracy of each."""
    mean = Agreement(*np.mean(agreements, axis=0).tolist())
    return mean._asdict() | {"pairwise_of_each": [agreement.pairwise for agreement in agreements]}


def _flat(fitted: Predictor) -> dict[str, np.ndarray]:
    layers = {
        f"{number}.{name}": np.asarray(value)
        for number, layer in enumerate(fitted.layers)
        for name, value in layer._asdict().items()
    }
    return layers | {"mean": np.asarray(fitted.mean), "deviation": np.asarray(fitted.deviation)}


def read_predictor(pipeline: Pipeline, kind: str = "quantized") -> Predictor:
    """The fitted predictor of a kind, of those in `FILES`.

    Raises:
      ConfigError: it is not fitted yet, or its file is damaged.
    """
    predictor_digest(pipeline, kind)
    try:
        flat = load_file(pipeline.workdir / FILES[kind])
    except (OSError, SafetensorError) as error:
        raise _unreadable(pipeline, kind, error) from error
    layers = tuple(
        Dense(jnp.asarray(flat[f"{number}.kernel"]), jnp.asarray(flat[f"{number}.bias"]))
        for number in range(len(flat) // 2 - 1)
    )
    return Predictor(layers, jnp.asarray(flat["mean"]), jnp.asarray(flat["deviation"]))


def predictor_digest(pipeline: Pipeline, kind: str = "quantized") -> str:
    """The digest of the file of a predictor.

    Raises:
      ConfigError: it is not fitted yet, or its file is not as it was written.
    """
    written = pipeline.read(f"{PREDICTOR}/{SUMMARY}").get("files")  # None in those of earlier versions
    try:
        digest = file_digest(pipeline.workdir / FILES[kind])
    except OSError as error:
        raise _unreadable(pipeline, kind, error.strerror) from error
    if written and written.get(kind) != digest:
        raise _unreadable(pipeline, kind, f"its digest was {written.get(kind)}, and is {digest} now")
    return digest


def _unreadable(pipeline: Pipeline, kind: str, reason: Any) -> ConfigError:
    path = pipeline.workdir / FILES[kind]
    return ConfigError(f"cannot read the predictor {path}: {reason}; remove {path.parent} to fit it anew")


def predict_accuracies(space: NetworkSpace, fitted: Predictor, genomes: jax.Array) -> jax.Array:
    """Predicted accuracies, float32[P], of genomes, int32[P, D]; a float predictor ignores the bits."""
    features = space.features(genomes)
    return predictor.predict(fitted, features[:, : fitted.layers[0].kernel.shape[0]])
