"""Settings of experiments: which there are and what each may be, checked before data is read or anything is compiled.

Their meanings are in configs/common.py; those of APQ are in configs/apq_common.py and `launch/apq/apq_settings.py`.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from aqt_like import stored_activations
from aqt_like.calibration import CRITERIA
from aqt_like.clip_multiples import DISTRIBUTIONS
from aqt_like.granularity import SCALE_RULES
from launch import data
from launch.config_files import meant
from launch.training.compute import COMPUTE, PRECISIONS
from launch.training.controllers import CONTROLLERS, NO_SEARCH
from launch.training.optimizers import OPTIMIZERS, SCHEDULES

PRECOMPUTED = "precomputed"  # the only clip.source that needs no batch
_LARGEST = float(np.finfo(np.float32).max)
_LARGEST_WHOLE = 2**31 - 1
_MOST_STEPS = 2**28
_TOLD = 200  # characters of a value in a message


class ConfigError(ValueError):
    """A setting cannot be used; the message names its key, its value and what was expected."""


class Range(NamedTuple):
    """What a setting may be: in words, and as a function that takes anything."""

    expected: str
    holds: Callable[[Any], bool]


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_sequence(value: Any, is_item: Callable[[Any], bool]) -> bool:
    return isinstance(value, tuple | list) and all(map(is_item, value))


def _number(expected: str, holds: Callable[[float], bool]) -> Range:
    """Numbers within float32, in which all is computed; `nan` is in no range."""
    return Range(
        expected,
        lambda value: (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and abs(value) <= _LARGEST
            and bool(holds(value))
        ),
    )


def whole(lowest: int, highest: int = _LARGEST_WHOLE) -> Range:
    """Whole numbers from `lowest` to `highest`, by default the largest int32."""
    below = "from 0" if not lowest else "above 0" if lowest == 1 else f"from {lowest}"
    return Range(
        f"a whole number {below}, up to {highest}", lambda value: _is_whole(value) and lowest <= value <= highest
    )


def one_of(names: Any) -> Range:
    """One of some texts."""
    return Range(f"one of {', '.join(names)}", lambda value: _is_text(value) and value in names)


def _texts(example: str) -> Range:
    return Range(f"a tuple of texts, such as ('{example}',)", lambda value: _is_sequence(value, _is_text))


TEXT = Range("a text", _is_text)
NAME = Range("a text that is not empty", lambda value: _is_text(value) and bool(value.strip()))
TEXT_OR_NONE = Range("a text, or None", lambda value: value is None or _is_text(value))
FLAG = Range("True or False", lambda value: isinstance(value, bool))
TUPLE = Range("a tuple", lambda value: isinstance(value, tuple | list))
ABOVE_0 = _number("a number above 0", lambda number: number > 0)
FROM_0 = _number("a number from 0", lambda number: number >= 0)
BELOW_1 = _number("a number from 0, below 1", lambda number: 0 <= number < 1)
SHARE = _number("a number in 0…1", lambda number: 0 <= number <= 1)
FRACTION = _number("a fraction of training, 0…1", lambda number: 0 <= number <= 1)
WHOLE_FROM_0, WHOLE_ABOVE_0 = whole(0), whole(1)
SEED = whole(0, 2**32 - 1)


def section(name: str, ranges: Mapping[str, Range]) -> dict[str, Range]:
    """The ranges of a section of a config, by the whole keys."""
    return {f"{name}.{key}": values for key, values in ranges.items()}


OPTIMIZER = {
    "name": Range(
        f"one of {', '.join(OPTIMIZERS)}, or package.module:function",
        lambda value: _is_text(value) and (value in OPTIMIZERS or ":" in value),
    ),
    "learning_rate": FROM_0,
    "momentum": BELOW_1,
    "weight_decay": FROM_0,
    "warmup_fraction": FRACTION,
    "schedule": one_of(SCHEDULES),
    "decay_to": _number("a number above 0, up to 1", lambda number: 0 < number <= 1),
}
DISTILLATION = {"weight": SHARE, "temperature": ABOVE_0}
_DATA = section(
    "data",
    {
        "name": NAME,
        "valid_examples": WHOLE_FROM_0,
        # Images.
        "data_dir": TEXT_OR_NONE,
        "download": FLAG,
        "test_split": NAME,
        "image_size": Range(
            "a whole number above 0, or None", lambda value: value is None or WHOLE_ABOVE_0.holds(value)
        ),
        "augment": NAME,
        "mixup": FROM_0,
        "cutmix": FROM_0,
        "erasing": SHARE,
        "stream": FLAG,
        "workers": WHOLE_FROM_0,
        "decoder": NAME,
        "on_bad_record": one_of(("error", "skip")),
        # Click logs.
        "file": TEXT_OR_NONE,
        "buckets": WHOLE_ABOVE_0,
        "test_fraction": _number("a share between 0 and 1", lambda number: 0 < number < 1),
    },
)
_CONTROLLERS = section(
    "controller",
    {
        **section(
            "reinforce",
            {
                "reward": NAME,
                "gamma": ABOVE_0,
                "learning_rate": FROM_0,
                "momentum": BELOW_1,
                "baseline_momentum": BELOW_1,
                "cost_samples": Range("0, or 2 and more", lambda value: _is_whole(value) and value != 1 and value >= 0),
                "paired": FLAG,
                "within_budget": FLAG,
                "entropy_schedule": NAME,
                "entropy_end": FROM_0,
                "warmup_fraction": FRACTION,
                "freeze_fraction": FRACTION,
            },
        ),
        **section("fisher", {"examples": WHOLE_ABOVE_0, "freeze_fraction": FRACTION}),
    },
)
FLIQS = {
    "seed": SEED,
    "model.name": NAME,
    "architecture": Range(
        "options by setting of the model, such as {'widths': (0.5, 1.0)}",
        lambda value: (
            isinstance(value, ConfigDict | Mapping)
            and all(_is_sequence(options, ABOVE_0.holds) and len(options) > 0 for options in value.values())
        ),
    ),
    "output": TEXT,
    "apply": TEXT,
    "init_from": TEXT,
    "init_prefix": TEXT,
    "init_anew": _texts("head"),
    "epochs": ABOVE_0,
    "batch_size": WHOLE_ABOVE_0,
    "valid_batch_size": WHOLE_ABOVE_0,
    "loss": NAME,
    "label_smoothing": BELOW_1,
    "quality": NAME,
    **section("distillation", {"teacher": TEXT, **DISTILLATION}),
    **section("optimizer", OPTIMIZER),
    "ema": BELOW_1,
    "formats": TEXT,
    "rules": _texts("stem: bf16"),
    "products": FLAG,
    "policy": NAME,
    "genome": TEXT,
    "baselines": _texts("int4"),
    "cost": NAME,
    "target": ABOVE_0,
    "target_unit": NAME,
    "budgets": TUPLE,  # `read_budgets` checks what is in it
    "targets": Range(
        "a tuple of numbers above 0, such as (1.2, 1.6)", lambda value: _is_sequence(value, ABOVE_0.holds)
    ),
    **_CONTROLLERS,
    "input_quantization_fraction": FRACTION,
    "profile_fraction": FRACTION,
    "ewgs_strength": FROM_0,
    "unsigned_inputs": FLAG,
    "scales": one_of(tuple(SCALE_RULES)),
    "compute": one_of(COMPUTE),
    "precision": one_of(PRECISIONS),
    "activations": one_of(stored_activations.TYPES),
    "rematerialise": TEXT,
    "clip.source": one_of((PRECOMPUTED, *CRITERIA)),
    "clip.distribution": one_of(DISTRIBUTIONS),
    "clip.input_multiple": FROM_0,
    "recalibration_batches": WHOLE_FROM_0,
    # Random search holds all draws in memory at once.
    **section("random_search", {"draws": whole(1, 10_000_000), "evaluated": WHOLE_ABOVE_0}),
    **section(
        "footprint",
        {
            "watts": FROM_0,
            "kilograms_per_kilowatt_hour": FROM_0,
            "dollars_per_hour": Range(
                "the lowest and the highest price",
                lambda value: _is_sequence(value, FROM_0.holds) and len(value) == 2 and value[0] <= value[1],
            ),
        },
    ),
    "log_every": WHOLE_ABOVE_0,
    "checkpoint_every": WHOLE_ABOVE_0,
}
_OPTIONAL = {"footprint.power_usage": FROM_0}  # what the shipped configs leave at its default


class Known(NamedTuple):
    """The settings of a kind of config.

    Attributes:
      ranges: what each setting may be; all of them are needed.
      optional: what there may be beside them.
      is_free: `(key) → whether` a key is of something of the user's, which alone knows what it may be.
    """

    ranges: Mapping[str, Range]
    optional: Mapping[str, Range]
    is_free: Callable[[str], bool]


def data_settings(config: ConfigDict) -> tuple[dict[str, Range], dict[str, Range]]:
    """The settings that the data set of a config uses, and those that others use."""
    name = dict(flattened(config, _DATA)).get("data.name")
    used = {f"data.{key}" for key in data.settings_of(name if isinstance(name, str) else "")}
    return {key: _DATA[key] for key in _DATA if key in used}, {key: _DATA[key] for key in _DATA if key not in used}


def flattened(config: Any, ranges: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The settings of a config by their whole keys; what `ranges` has a key for is one setting, whatever is in it."""
    for name, value in config.items():
        key = f"{prefix}{name}"
        if isinstance(value, ConfigDict | Mapping) and key not in ranges:
            yield from flattened(value, ranges, f"{key}.")
        else:
            yield key, value


def known_settings(config: ConfigDict) -> Known:
    """The settings that a config of `launch.fliqs` has."""
    used, others = data_settings(config)
    policy = config.get("policy")
    ours = isinstance(policy, str) and ":" not in policy and policy not in NO_SEARCH

    def is_free(key: str) -> bool:
        first, _, rest = key.partition(".")
        own_controller = first == "controller" and not ours and rest.split(".")[0] not in CONTROLLERS
        return first == "model" or own_controller

    return Known({**FLIQS, **used}, {**_OPTIONAL, **others}, is_free)


def unknown_keys(config: ConfigDict, known: Known) -> list[str]:
    """The keys of a config that are no settings."""
    ranges = {**known.ranges, **known.optional}
    return [key for key, _ in flattened(config, ranges) if key not in ranges and not known.is_free(key)]


def check_type(config: Any) -> None:
    """Raises ConfigError for what is no config at all, as a `get_config` may return."""
    if not isinstance(config, ConfigDict):
        raise ConfigError(f"the config is a {type(config).__name__}: expected a ml_collections.ConfigDict")


def check_ranges(config: ConfigDict, known: Known, *, like: str) -> None:
    """Checks that a config has all settings, no others, and each in its range.

    Args:
      config: the config.
      known: its settings.
      like: the file in which all of them are, for the message.

    Raises:
      ConfigError: it has not; the message names the keys.
    """
    ranges = {**known.ranges, **known.optional}
    given = dict(flattened(config, ranges))
    for key, value in given.items():
        if inside := [other for other in ranges if other.startswith(f"{key}.")]:
            raise ConfigError(f"{key}={value!r}: expected a section, with {', '.join(inside)}")
    if unknown := unknown_keys(config, known):
        raise ConfigError("; ".join(f"the config has no key {key!r}{meant(key, list(ranges))}" for key in unknown[:3]))
    if missing := [key for key in known.ranges if key not in given]:
        raise ConfigError(
            f"the config lacks {', '.join(missing[:5])}{' …' if missing[5:] else ''}: expected all keys of {like}; "
            "start from its get_config(), and set single keys"
        )
    for key, allowed in ranges.items():
        if key in given and not allowed.holds(given[key]):
            raise ConfigError(f"{key}={_told(given[key])}: expected {allowed.expected}")


def _told(value: Any) -> str:
    text = repr(value) if isinstance(value, str | tuple | list) else str(value)
    return text if len(text) <= _TOLD else f"{text[:_TOLD]}…"


def check_settings(config: ConfigDict) -> None:
    """Checks the settings of `launch.fliqs` that depend on neither data nor model.

    Raises:
      ConfigError: a setting cannot be used.
    """
    check_type(config)
    if "supernet" in config:
        raise ConfigError("the config is one for python -m launch.apq; expected one as configs/fliqs_digits.py")
    check_ranges(config, known_settings(config), like="configs/common.py")
    for key in ("batch_size", "valid_batch_size"):
        check_devices(key, config[key])
    if config.profile_fraction < config.input_quantization_fraction:
        raise ConfigError(
            f"profile_fraction={config.profile_fraction}: inputs are profiled until they are quantised at least, which "
            f"is at input_quantization_fraction={config.input_quantization_fraction}"
        )
    if config.clip.input_multiple and config.clip.source != PRECOMPUTED:
        raise ConfigError(
            f"clip.input_multiple={config.clip.input_multiple}: expected 0 with clip.source={config.clip.source!r}, "
            "whose multiples are those of a batch"
        )
    if config.ema and not config.recalibration_batches:
        raise ConfigError(
            f"recalibration_batches=0: expected more with ema={config.ema}, since averaged weights have batch "
            "statistics and input profiles of their own"
        )
    if config.random_search.evaluated > config.random_search.draws:
        raise ConfigError(
            f"random_search.evaluated={config.random_search.evaluated}: expected at most "
            f"random_search.draws={config.random_search.draws}"
        )
    if config.policy == "fisher" and config.controller.fisher.examples > config.batch_size:
        raise ConfigError(
            f"controller.fisher.examples={config.controller.fisher.examples}: expected at most those of a batch, "
            f"batch_size={config.batch_size}"
        )
    if len(set(config.baselines)) < len(config.baselines):
        raise ConfigError(f"baselines={config.baselines}: one format is there twice")


def check_steps(key: str, epochs: float, steps: float) -> int:
    """The number of steps of a training, a whole one; the setting `key` says how many epochs that is.

    Raises:
      ConfigError: there are more than can be counted in int32, in which each step also has a few random numbers.
    """
    if steps >= _MOST_STEPS:
        raise ConfigError(f"{key}={epochs:g}: that is {steps:.1e} steps, expected fewer than {_MOST_STEPS:,}")
    return max(round(steps), 1)


def check_devices(key: str, batch_size: int) -> None:
    """Raises ConfigError if a batch, whose size is the setting `key`, cannot be split evenly over all devices."""
    if batch_size % (devices := len(jax.devices())):
        raise ConfigError(f"{key}={batch_size}: expected a multiple of the {devices} devices")
