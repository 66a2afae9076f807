"""What a network learns: the loss and the quality that a config names, and the labels that both take."""

from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from fliqs_jax import distillation, losses
from fliqs_jax.losses import LABEL_SHARE, MIXED_LABEL
from fliqs_jax.models.calling import CalledModel
from fliqs_jax.quality import QUALITIES, Quality
from hwcost import registry
from launch.config_files import load_config
from launch.data import Arrays, Source
from launch.data.contract import as_arrays, named_arrays
from launch.data.example_checks import Labels, check_arrays, check_type, made_batch
from launch.model_arguments import several
from launch.training.run_directory import SUMMARY_KEYS

_EXAMPLES = 2  # of the batch on which loss and quality are tried, see `several`


class Task(NamedTuple):
    """A loss and a quality that go together.

    Attributes:
      names: of loss and quality, in the config.
      loss: training loss.
      quality: Q in the reward, and metric of the finished network.
      logits: shape and type of the logits of one example.
      labels: the labels that both take.
    """

    names: tuple[str, str]
    loss: losses.Loss
    quality: Quality
    logits: jax.ShapeDtypeStruct
    labels: Labels

    def check(self, batch: dict[str, Any]) -> None:
        """Traces loss and quality on shapes and types: logits, and a training batch.

        Raises:
          ValueError: one of them fails, gives no scalar, or does not read the second label of mixed images.
        """
        read: set[str] = set()
        logits = jax.ShapeDtypeStruct((batch["label"].shape[0], *self.logits.shape), self.logits.dtype)
        for kind, name, function in zip(
            ("loss", "quality"), self.names, (self.loss, self.quality.on_batch), strict=True
        ):
            try:
                found = jax.eval_shape(lambda x, batch, f=function: f(x, _Noting(batch, read)), logits, batch)
            except Exception as error:  # It may be the user's, and raise anything.
                told = error if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
                raise ValueError(f"{kind}={name!r} on {self.logits.shape[-1]} logits: {told}") from error
            if getattr(found, "shape", None) != ():
                raise ValueError(f"{kind}={name!r} gives {found}: expected a scalar")
            if MIXED_LABEL in batch and kind == "loss" and MIXED_LABEL not in read:
                raise ValueError(
                    f"loss={name!r} does not read {MIXED_LABEL!r}, the label of the second of two mixed images: set "
                    "data.mixup and data.cutmix to 0, or mix the labels"
                )


class _Noting(dict):
    """A batch that notes what is read of it."""

    def __init__(self, batch: dict[str, Any], read: set[str]) -> None:
        super().__init__(batch)
        self._read = read

    def __getitem__(self, key: str) -> Any:
        self._read.add(key)
        return super().__getitem__(key)


def make_task(config: ConfigDict, model: CalledModel, source: Source) -> Task:
    """The loss and the quality that a config names, checked on the logits of the model; arrays are checked whole.

    Raises:
      DataError: an example of arrays cannot be.
      ValueError: there is no such loss or quality, or they do not go together, or not with the model or the data.
    """
    for name, leaf in named_arrays(source.example):
        check_type(name.replace("input", "inputs"), leaf.dtype)
    own_loss, own_quality = config.loss not in losses.LOSSES, config.quality not in QUALITIES
    plain = registry.lookup_function("loss", config.loss, losses.LOSSES, ("logits", "batch"))
    if not own_loss:  # Ours are made with the smoothing; a user's is the loss itself.
        plain = plain(config.label_smoothing)
    elif config.label_smoothing not in (0.0, load_config("common").label_smoothing):
        raise ValueError(
            f"label_smoothing={config.label_smoothing}: loss={config.loss!r} is yours and does not take it"
        )
    stated = getattr(plain, "label", None)
    if not isinstance(stated, jax.ShapeDtypeStruct | None):
        raise ValueError(f"loss={config.loss!r} has label {stated!r}: expected a jax.ShapeDtypeStruct")
    if stated is not None and not own_quality:
        raise ValueError(
            f"loss={config.loss!r} takes labels {np.dtype(stated.dtype)}{list(stated.shape)}, quality="
            f"{config.quality!r} class numbers: expected a quality of yours, as package.module:name"
        )
    logits, quality = _logits(model), _quality(config.quality)
    padding = bool(getattr(source, "padding", False))
    if stated is None:
        count = logits.shape[-1]
        classes = max(count, 2) if source.classes == 1 else min(max(count, 2), source.classes)
        present = (0, 1) if quality is QUALITIES["auc"] else ()
        labels = Labels(logits.shape[:-1], classes, padding=padding, present=present)
    else:
        labels = Labels(tuple(stated.shape), None, np.dtype(stated.dtype), padding=padding)
    loss = _taught(config, plain, source.classes)
    task = Task((config.loss, config.quality), loss, quality, logits, labels)
    if not (own_loss or own_quality) or not (isinstance(source, Arrays) or ":" in config.data.name):
        task.check(_standard_batch(config, source, task))  # What batches of the user's hold is known when there is one.
    if not own_loss and logits.shape[-1] < source.classes and (logits.shape[-1], source.classes) != (1, 2):
        raise ValueError(
            f"model={config.model.name!r} has {logits.shape[-1]} logits, the data have {source.classes} classes"
        )
    if isinstance(source, Arrays):
        check_arrays(source, task.labels)
        made = made_batch(source, *source.train.part(slice(0, _EXAMPLES)), np.random.default_rng(0))
        shapes = {name: jax.tree.map(jax.typeof, as_arrays(values)) for name, values in made.items()}
        task.check(_with_teacher(config, task, shapes))
    return task


def _logits(model: CalledModel) -> jax.ShapeDtypeStruct:
    """Shape and type of the logits of one example."""
    found = model.logits
    shape = getattr(found, "shape", ())
    if found is None or len(shape) < 2 or shape[0] != _EXAMPLES:
        raise ValueError(f"the model gives {found} for {_EXAMPLES} examples: expected logits, [batch, …, logits]")
    return jax.ShapeDtypeStruct(shape[1:], found.dtype)


def _taught(config: ConfigDict, loss: losses.Loss, classes: int) -> losses.Loss:
    settings = config.distillation
    if not settings.teacher:
        return loss
    if classes < 2:
        raise ValueError(f"distillation.teacher={settings.teacher!r}: soft targets need two classes or more")
    return distillation.distilled(loss, weight=settings.weight, temperature=settings.temperature)


def _quality(name: str) -> Quality:
    quality = registry.lookup("quality", name, QUALITIES)
    if not isinstance(quality, Quality):
        raise ValueError(f"quality={name!r}: expected a fliqs_jax.quality.Quality, got {type(quality).__name__}")
    if quality.name in SUMMARY_KEYS:
        raise ValueError(f"quality={name!r} is called {quality.name!r}, which summaries use for something else")
    return quality


def _standard_batch(config: ConfigDict, source: Source, task: Task) -> dict[str, Any]:
    """Shapes and types of a training batch that holds nothing of the user's."""
    label = several(jax.ShapeDtypeStruct(task.labels.shape, task.labels.dtype))
    batch = {"input": several(source.example), "label": label}
    if not isinstance(source, Arrays) and (config.data.get("mixup") or config.data.get("cutmix")):
        batch |= {MIXED_LABEL: label, LABEL_SHARE: jax.ShapeDtypeStruct((_EXAMPLES,), np.dtype(np.float32))}
    return _with_teacher(config, task, batch)


def _with_teacher(config: ConfigDict, task: Task, batch: dict[str, Any]) -> dict[str, Any]:
    return batch | ({distillation.TEACHER_LOGITS: several(task.logits)} if config.distillation.teacher else {})
