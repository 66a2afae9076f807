"""Settings of APQ are checked before the once-for-all network is trained."""

import io
import math

import pytest
from rich.console import Console

from configs import apq_common, apq_digits, apq_imagenet, fliqs_digits
from launch.apq import apq_settings, finish
from launch.apq.pipeline import prepare_pipeline
from launch.training import settings
from launch.training.settings import ConfigError
from tests.launch.conftest import changed

NAN = math.nan


def test_every_setting_has_a_range_and_every_range_a_setting():
    for config in (apq_common.get_config(), apq_imagenet.get_config()):
        known = apq_settings.known_settings(config)
        ours = {key for key, _ in settings.flattened(config, known.ranges)}
        assert known.ranges.keys() <= ours <= {*known.ranges, *known.optional}
        apq_settings.check_settings(config)


@pytest.mark.parametrize(
    ("key", "values", "expected"),
    [
        ("records.float", (0, 1, 2.5), "a whole number from 2"),
        ("records.fine_tuning_steps", (-1,), "a whole number from 0"),
        ("records.calibration_batches", (0,), "a whole number above 0"),
        ("records.batch_size", (0,), "a whole number above 0"),
        ("records.policies", (0,), "a whole number above 0"),
        ("records.fine_tuning_rate", (-1.0, NAN), "a number from 0"),
        ("predictor.hidden", (0,), "a whole number above 0"),
        ("predictor.steps", (-1, 0), "a whole number above 0"),
        ("predictor.repeats", (0,), "a whole number above 0"),
        ("predictor.counts", ((0,), 5, ("a",)), "a tuple of whole numbers above 0"),
        ("predictor.counts", ((10_000,), (10, 10)), r"different numbers of up to 70 records, .*held_out=50"),
        ("predictor.held_out", (150,), "some of the 120 records"),
        ("predictor.weight_decay", (-1.0,), "a number from 0"),
        ("search.population", (0,), "a whole number above 0"),
        ("search.parents", (1000,), "at most search.population=100"),
        ("search.mutation", (2.0, NAN), "a number in 0…1"),
        ("search.generations", (-1,), "a whole number from 0"),
        ("search.budgets", ("x", 3), "a tuple"),
        ("finish.epochs", (-1.0, NAN), "a number above 0"),
        ("finish.together", (1, "yes"), "True or False"),
        ("quantizer", ("x",), "one of gaussian, least_divergence"),
        ("search.baselines", ("int4", (4,)), "a tuple of texts"),
        ("supernet.epochs", (-1.0,), "a number above 0"),
        ("supernet.stages.full", (2.0, NAN), "a number in 0…1"),
        ("supernet.stages", ({"full": 0.5, "kernel": 0.2, "channels": 0.25, "depth": 0.3},), ".*whose sum is 1"),
        ("supernet.optimizer.learning_rate", (NAN,), "a number from 0"),
        ("supernet.distillation.weight", (2.0,), "a number in 0…1"),
    ],
)
def test_what_is_out_of_range_is_told_with_its_key(key, values, expected):
    for value in values:
        with pytest.raises(ConfigError, match=rf"^{key}=.*: expected {expected}"):
            apq_settings.check_settings(changed(apq_digits.get_config(), key, value))


def test_misspelt_keys_and_configs_of_the_other_command_are_told():
    for key, hint in (("supernet.epoch", "supernet.epochs"), ("finish.weight_decay", "finish.optimizer.weight_decay")):
        with pytest.raises(ConfigError, match=f"no key '{key}'; did you mean .*{hint}"):
            apq_settings.check_settings(changed(apq_digits.get_config(), key, 3.0))
    with pytest.raises(ConfigError, match=r"the config is one for python -m launch\.fliqs"):
        apq_settings.check_settings(fliqs_digits.get_config())
    with pytest.raises(ConfigError, match="the config is a list"):
        apq_settings.check_settings([])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("records.batch_size", 5000, "records.batch_size=5000: there are 1037 such examples"),
        ("data.valid_examples", 0, "data.valid_examples=0: expected 1…1436"),
        ("supernet.epochs", 1e30, r"supernet.epochs=1e\+30: that is .* steps, expected fewer"),
        ("finish.valid_batch_size", 500, "finish: valid_batch_size=500: there are 400 such examples"),
        ("finish.distillation.teacher", "nowhere", "finish: nowhere holds no run"),
    ],
)
def test_what_needs_data_or_the_network_is_checked_too(key, value, message, tmp_path):
    console = Console(file=io.StringIO())
    with pytest.raises(ValueError, match=message):
        finish.check(prepare_pipeline(changed(apq_digits.get_config(), key, value), tmp_path / "new", console))
    assert not (tmp_path / "new").exists()


def test_equal_budgets_in_other_words_are_one(tmp_path):
    """All layers of the largest network in int8 take a byte for each of their weights."""
    console = Console(file=io.StringIO())
    budget = {"cost": "weight_bytes", "target": 1.0, "target_unit": "int8"}
    config = changed(apq_digits.get_config(), "search.budgets", (budget,))
    (limits,) = prepare_pipeline(config, tmp_path, console).budgets
    config.search.budgets = (
        budget,
        {"cost": "weight_bytes", "target": limits["weight_bytes"], "target_unit": "absolute"},
    )
    with pytest.raises(ConfigError, match="is there twice, in other words"):
        prepare_pipeline(config, tmp_path, console)
