"""Settings of APQ: what each may be. Their meanings are in configs/apq_common.py."""

from ml_collections import ConfigDict

from apq_jax import shrinking
from apq_jax.selection import SELECTIONS
from apq_jax.subnet_accuracy import QUANTIZERS
from launch.config_files import load_config
from launch.training.settings import (
    ABOVE_0,
    BELOW_1,
    DISTILLATION,
    FLAG,
    FLIQS,
    FROM_0,
    OPTIMIZER,
    PRECOMPUTED,
    SEED,
    SHARE,
    TEXT,
    TUPLE,
    WHOLE_ABOVE_0,
    WHOLE_FROM_0,
    ConfigError,
    Known,
    Range,
    check_devices,
    check_ranges,
    check_type,
    data_settings,
    one_of,
    section,
    whole,
)

_RANGES = {
    "seed": SEED,
    "space": TEXT,
    "image_size": WHOLE_FROM_0,
    "architecture": FLIQS["architecture"],
    "formats": TEXT,
    "quantizer": one_of(QUANTIZERS),
    **section(
        "supernet",
        {
            "epochs": ABOVE_0,
            "batch_size": WHOLE_ABOVE_0,
            "label_smoothing": BELOW_1,
            "sampling": one_of(shrinking.SAMPLINGS),
            **section("stages", dict.fromkeys(shrinking.STAGES, SHARE)),
            **section("distillation", DISTILLATION),
            **section("optimizer", OPTIMIZER),
            "log_every": WHOLE_ABOVE_0,
            "checkpoint_every": WHOLE_ABOVE_0,
        },
    ),
    **section(
        "records",
        {
            "float": whole(2),  # at least one is held out, and at least one learnt from
            "quantized": whole(2),
            "policies": WHOLE_ABOVE_0,
            "batch_size": WHOLE_ABOVE_0,
            "calibration_batches": WHOLE_ABOVE_0,
            "fine_tuning_steps": WHOLE_FROM_0,
            "fine_tuning_rate": FROM_0,
        },
    ),
    **section(
        "predictor",
        {
            "hidden": WHOLE_ABOVE_0,
            "steps": WHOLE_ABOVE_0,
            "batch_size": WHOLE_ABOVE_0,
            "learning_rate": FROM_0,
            "weight_decay": FROM_0,
            "held_out": WHOLE_ABOVE_0,
            "counts": Range(
                "a tuple of whole numbers above 0, such as (10, 25)",
                lambda value: isinstance(value, tuple | list) and all(map(WHOLE_ABOVE_0.holds, value)),
            ),
            "repeats": WHOLE_ABOVE_0,
        },
    ),
    **section(
        "search",
        {
            "budgets": TUPLE,  # `read_alternatives` checks what is in it
            "baselines": Range(
                "a tuple of texts, such as ('from_scratch', 'int4')",
                lambda value: isinstance(value, tuple | list) and all(map(TEXT.holds, value)),
            ),
            "selection": one_of(SELECTIONS),
            "generations": WHOLE_FROM_0,
            "population": WHOLE_ABOVE_0,
            "parents": WHOLE_ABOVE_0,
            "mutation": SHARE,
        },
    ),
    "finish.together": FLAG,
}


def known_settings(config: ConfigDict) -> Known:
    """The settings that a config of `launch.apq` has."""
    used, others = data_settings(config)
    finishing = load_config("apq_common").finish  # those of launch.fliqs that have a meaning for a given genome
    finish = section("finish", {key: values for key, values in FLIQS.items() if key.split(".")[0] in finishing})
    return Known({**_RANGES, **finish, **used}, others, lambda key: key.startswith("model."))


def check_settings(config: ConfigDict) -> None:
    """Checks the settings that do not depend on data, but for those of the finishing run beyond their ranges.

    Raises:
      ConfigError: a setting cannot be used.
    """
    check_type(config)
    if "policy" in config and "supernet" not in config:
        raise ConfigError("the config is one for python -m launch.fliqs; expected one of APQ, as configs/apq_digits.py")
    check_ranges(config, known_settings(config), like="configs/apq_common.py")
    _check_space(config)
    check_devices("supernet.batch_size", config.supernet.batch_size)
    stages = config.supernet.stages.to_dict()
    if not stages["full"] or abs(sum(stages.values()) - 1) > 1e-6:
        raise ConfigError(f"supernet.stages={stages}: expected fractions of training, whose sum is 1, full above 0")
    records, predictor, search = config.records, config.predictor, config.search
    if predictor.held_out >= records.quantized:
        raise ConfigError(f"predictor.held_out={predictor.held_out}: expected some of the {records.quantized} records")
    learnt = records.quantized - predictor.held_out
    if len(set(predictor.counts)) < len(predictor.counts) or max(predictor.counts, default=0) > learnt:
        raise ConfigError(
            f"predictor.counts={predictor.counts}: expected different numbers of up to {learnt} records, those of "
            f"records.quantized={records.quantized} that are not in predictor.held_out={predictor.held_out}"
        )
    if config.finish.together and QUANTIZERS[config.quantizer].source != PRECOMPUTED:
        raise ConfigError(
            f"finish.together=True: expected False with quantizer={config.quantizer!r}, whose thresholds are measured "
            "on a network that is cut out"
        )
    if len(set(search.baselines)) < len(search.baselines):
        raise ConfigError(f"search.baselines={search.baselines}: one is there twice")
    if search.parents > search.population:
        raise ConfigError(f"search.parents={search.parents}: expected at most search.population={search.population}")


def _check_space(config: ConfigDict) -> None:
    """Checks that what is searched is told in one of the two ways."""
    of_family = ("model", "architecture", "formats")
    if config.space:
        if given := [key for key in of_family if config[key]]:
            raise ConfigError(f"space={config.space!r}: expected '' with {', '.join(given)}, which a family has")
    else:
        if lacking := [key for key in of_family if not config[key]]:
            raise ConfigError(f"space='': expected a space, or a family with {', '.join(lacking)}")
        if "name" not in config.model:
            raise ConfigError("model.name: expected the name of a network that has a family")
        if config.image_size:
            raise ConfigError(f"image_size={config.image_size}: expected 0, since images say that of a family")
