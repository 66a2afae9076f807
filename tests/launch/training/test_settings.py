"""What configs may hold: every setting has a range, and a key that is none is told, wherever it was written."""

import math

import pytest
from ml_collections import ConfigDict

from configs import apq_digits, common, fliqs_criteo, fliqs_digits
from launch.training import settings
from launch.training.settings import ConfigError, check_settings
from tests.launch.conftest import changed

INFINITE, NAN = math.inf, math.nan


def test_every_setting_has_a_range_and_every_range_a_setting():
    for config in (common.get_config(), fliqs_criteo.get_config()):
        known = settings.known_settings(config)
        keys = {key for key, _ in settings.flattened(config, known.ranges)}
        ours = {key for key in keys if not key.startswith("model.")} | {"model.name"}
        assert known.ranges.keys() <= ours <= {*known.ranges, *known.optional}
        check_settings(config)


OUT_OF_RANGE = {
    "a whole number from 0, up to 4294967295": [("seed", -1), ("seed", 2**32), ("seed", 1.0), ("seed", True)],
    "a number above 0": [
        *(("epochs", value) for value in (0.0, -1.0, NAN, INFINITE, 1e39, "3", None, [3.0])),
        *(("controller.reinforce.gamma", value) for value in (0.0, NAN)),
        *(("target", value) for value in (0.0, NAN, INFINITE)),
        ("distillation.temperature", 0.0),
    ],
    "a number from 0": [
        *(("optimizer.learning_rate", value) for value in (-0.1, NAN, INFINITE)),
        ("optimizer.weight_decay", NAN),
        ("controller.reinforce.learning_rate", -1.0),
        ("controller.reinforce.entropy_end", -1.0),
        ("controller.reinforce.entropy_end", NAN),
        ("ewgs_strength", NAN),
        ("footprint.watts", NAN),
        ("footprint.kilograms_per_kilowatt_hour", -1.0),
        ("data.mixup", NAN),
        ("data.cutmix", -1.0),
    ],
    "a number from 0, below 1": [
        ("optimizer.momentum", 2.0),
        ("ema", 1.0),
        ("label_smoothing", 2.0),
        ("label_smoothing", NAN),
        ("controller.reinforce.momentum", 1.0),
        ("controller.reinforce.baseline_momentum", 1.5),
    ],
    "a number above 0, up to 1": [("optimizer.decay_to", 0.0), ("optimizer.decay_to", NAN)],
    "a number in 0…1": [("distillation.weight", 1.5), ("data.erasing", 5.0)],
    "a fraction of training, 0…1": [
        ("optimizer.warmup_fraction", 1.5),
        ("controller.reinforce.warmup_fraction", 1.5),
        ("controller.fisher.freeze_fraction", NAN),
        ("profile_fraction", -0.1),
    ],
    "a whole number above 0": [
        ("batch_size", 0),
        ("valid_batch_size", -1),
        ("random_search.draws", 0),
        ("random_search.evaluated", 0),
        ("log_every", 0),
        ("checkpoint_every", 2.5),
        ("controller.fisher.examples", 0),
    ],
    "a whole number above 0, or None": [("data.image_size", -3), ("data.image_size", 0)],
    "a whole number from 0": [("recalibration_batches", -3), ("data.workers", -1), ("data.valid_examples", 0.5)],
    "0, or 2 and more": [("controller.reinforce.cost_samples", 1), ("controller.reinforce.cost_samples", -2)],
    "one of sgd, adamw, rmsprop, frozen": [("optimizer.name", "lion"), ("optimizer.name", ["sgd"])],
    "one of cosine, exponential": [("optimizer.schedule", "stairs")],
    "one of precomputed, profiled, least_divergence": [("clip.source", "guess")],
    "one of gaussian, laplacian": [("clip.distribution", "cauchy")],
    "one of auto, float32, bfloat16": [("compute", "float16")],
    "one of float32, bfloat16": [("activations", "auto"), ("activations", "float16")],
    "a tuple of texts": [("rules", "stem: bf16"), ("rules", (3,)), ("baselines", (4,))],
    "a tuple of numbers above 0": [("targets", (1.2, NAN)), ("targets", ("1.2",)), ("targets", (True,))],
    "a text": [("formats", 4), ("genome", None), ("init_from", 0)],
    "a text that is not empty": [("policy", ""), ("data.name", 3), ("model.name", None), ("cost", " ")],
    "True or False": [("products", 1), ("controller.reinforce.paired", "no"), ("data.stream", "x")],
    "the lowest and the highest price": [
        *(("footprint.dollars_per_hour", value) for value in ((1.0,), (2.0, 1.0), (NAN, 1.0), 3.0, "12")),
    ],
    "a section, with": [("optimizer", 3), ("controller", "reinforce"), ("data", None), ("footprint", [1, 2])],
}


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [(key, value, expected) for expected, cases in OUT_OF_RANGE.items() for key, value in cases],
)
def test_what_is_out_of_range_is_told_with_its_key(key, value, expected):
    with pytest.raises(ConfigError) as refused:
        check_settings(changed(fliqs_digits.get_config(), key, value))
    assert str(refused.value).startswith(f"{key}=")
    assert f": expected {expected}" in str(refused.value)


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("batchsize", "did you mean batch_size"),
        ("target_units", "did you mean target_unit"),
        ("optimizer.weightdecay", "did you mean optimizer.weight_decay"),
        ("data.valid_example", "did you mean data.valid_examples"),
        ("controller.fisher.example", "did you mean controller.fisher.examples"),
        ("controller.renforce", "it has|did you mean"),
        ("data_dir", r"did you mean data\.data_dir\?"),
        ("zzz", "it has seed, "),
    ],
)
def test_a_key_that_is_no_setting_is_told_with_what_may_be_meant(key, hint):
    with pytest.raises(ConfigError, match=rf"the config has no key '{key}'.*({hint})"):
        check_settings(changed(fliqs_digits.get_config(), key, 1))


def test_what_is_the_users_own_may_have_any_key():
    config = changed(fliqs_digits.get_config(), "model.anything", 3)
    changed(config, "footprint.power_usage", 1.1)
    check_settings(config)
    config.data.name = "package.module:data"  # which takes no settings
    check_settings(config)
    with pytest.raises(ConfigError, match=r"no key 'data\.folder'"):
        check_settings(changed(config.copy_and_resolve_references(), "data.folder", "somewhere"))
    with pytest.raises(ConfigError, match=r"no key 'data\.valid_example'; did you mean data\.valid_examples"):
        check_settings(changed(config.copy_and_resolve_references(), "data.valid_example", 3))
    config.data = ConfigDict({"name": "package.module:data", "valid_examples": 5})
    check_settings(config)
    config.policy = "package.module:controller"
    check_settings(changed(config, "controller.mine", ConfigDict({"rate": 0.1})))
    config.policy = "fixed"  # as its uniform baselines have
    check_settings(config)
    config.policy = "fisher"
    with pytest.raises(ConfigError, match=r"no key 'controller\.mine\.rate'"):
        check_settings(config)


def test_a_section_that_lacks_settings_and_what_is_no_config_are_told():
    config = fliqs_digits.get_config()
    config.data = ConfigDict({"name": "digits", "valid_examples": 400})
    with pytest.raises(
        ConfigError, match=r"the config lacks data\.image_size, .*: expected all keys of configs/common"
    ):
        check_settings(config)
    for other in ({"epochs": 1}, None, 3):
        with pytest.raises(ConfigError, match=r"the config is a .*: expected a ml_collections\.ConfigDict"):
            check_settings(other)
    with pytest.raises(ConfigError, match=r"the config is one for python -m launch\.apq"):
        check_settings(apq_digits.get_config())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"random_search": {"draws": 4, "evaluated": 30}}, "random_search.evaluated=30: expected at most .*draws=4"),
        ({"baselines": ("int4", "int4")}, "one format is there twice"),
        ({"controller": {"fisher": {"examples": 500}}}, "fisher.examples=500: expected at most .* batch_size=128"),
        ({"profile_fraction": 0.1}, "profile_fraction=0.1: inputs are profiled"),
        (
            {"clip": {"input_multiple": 4.0, "source": "profiled"}},
            "clip.input_multiple=4.0: expected 0 with clip.source",
        ),
        ({"ema": 0.9, "recalibration_batches": 0}, "recalibration_batches=0: expected more with ema=0.9"),
    ],
)
def test_settings_have_to_fit_each_other(changes, message):
    config = fliqs_digits.get_config()
    config.update(changes)
    with pytest.raises(ConfigError, match=message):
        check_settings(config)
