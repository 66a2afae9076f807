import itertools

import numpy as np
import pytest
from ml_collections import ConfigDict

from launch import data


def pairs():
    """What a user's module may hold: inputs that tell their number, and labels of more than one axis."""
    inputs = np.arange(50, dtype=np.int32)[:, None]
    labels = np.concatenate([inputs % 3, inputs % 2], axis=1)
    test = data.Split(1000 + inputs[:7], labels[:7])
    return data.Arrays(train=data.Split(inputs, labels), test=test, classes=3)


@pytest.fixture
def dataset():
    return pairs().open(valid_examples=20, seed=3)


def numbers(batches):
    return np.concatenate([batch["input"] for batch in batches]).ravel()


def take(dataset, split, count, first_step=0, *, augmented=False):
    stream = dataset.train_batches(split, batch_size=10, first_step=first_step, augmented=augmented)
    return list(itertools.islice(stream, count))


def test_splits_never_overlap_and_lose_nothing(dataset):
    train, valid, test = (set(numbers(dataset.eval_batches(s, batch_size=5))) for s in ("train", "valid", "test"))
    assert train | valid == set(range(50))
    assert (len(train), len(valid)) == (30, 20)
    assert test == {*range(1000, 1007), 0}  # with padding


def test_an_epoch_visits_every_example_once_in_a_new_order(dataset):
    first, second = numbers(take(dataset, "train", 3)), numbers(take(dataset, "train", 3, first_step=3))
    assert sorted(first) == sorted(second)
    assert list(first) != list(second)


def test_a_stream_can_be_entered_anywhere(dataset):
    np.testing.assert_array_equal(
        numbers(take(dataset, "train", 9)[4:]), numbers(take(dataset, "train", 5, first_step=4))
    )


def test_evaluation_keeps_the_order_and_pads_with_the_label_minus_1(dataset):
    first, last = dataset.eval_batches("test", batch_size=5)
    assert list(first["input"][:, 0]) == list(range(1000, 1005))
    assert first["label"].shape == last["label"].shape == (5, 2)
    assert (last["label"][2:] == -1).all()
    assert (last["label"][:2] >= 0).all()


def test_only_augmented_batches_get_a_generator_that_depends_on_the_step():
    drawn = []

    def make_batch(inputs, labels, rng):
        drawn.append(None if rng is None else rng.integers(1 << 30))
        return {"input": inputs, "label": labels}

    source = pairs()
    dataset = data.Arrays(source.train, source.test, 3, make_batch).open(valid_examples=20, seed=3)
    take(dataset, "train", 4, augmented=True)
    take(dataset, "train", 1, first_step=3, augmented=True)
    take(dataset, "valid", 1)
    list(dataset.eval_batches("test", batch_size=7))
    assert len({*drawn[:4]}) == 4
    assert drawn[4] == drawn[3]
    assert drawn[5:] == [None, None]


def test_what_cannot_be_is_refused(dataset):
    with pytest.raises(data.DataError, match="a batch of 10 is larger than the valid split, which has 5"):
        take(pairs().open(valid_examples=5, seed=0), "valid", 1)
    with pytest.raises(data.DataError, match=r"data.valid_examples=50: expected 1…49 of the training examples"):
        pairs().open(valid_examples=50, seed=0)


def test_a_users_data_is_found_by_name(monkeypatch):
    monkeypatch.setattr(data, "pairs", pairs, raising=False)
    source = data.find(ConfigDict({"name": "launch.data:pairs"}))
    assert (source.example.shape, source.example.dtype, source.classes, source.train_examples) == (
        (1,),
        np.int32,
        3,
        50,
    )
    for name, message in (
        ("launch.data:nothing", r"data.name='launch.data:nothing': data set .* has no attribute 'nothing'"),
        ("no_such_module:f", "No module named 'no_such_module'"),
        ("json:loads", "missing 1 required positional argument"),
        ("builtins:dict", "gives a dict without example, classes, train_examples, open: expected launch.data.Arrays"),
    ):
        with pytest.raises(data.DataError, match=message):
            data.find(ConfigDict({"name": name}))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("augment", "crop_flip"),
        ("augment", "no such"),
        ("mixup", 1.0),
        ("cutmix", 1.0),
        ("erasing", 5.0),
        ("image_size", 16),
        ("stream", True),
        ("data_dir", "somewhere"),
        ("download", True),
        ("test_split", "validation"),
        ("workers", 2),
    ],
)
def test_settings_that_would_do_nothing_are_refused(setting, value, monkeypatch, data_config):
    monkeypatch.setattr(data, "pairs", pairs, raising=False)
    assert data.find(data_config(name="launch.data:pairs")).classes == 3
    with pytest.raises(data.DataError, match=f"data.{setting}={value!r}: data.name='launch.data:pairs' does not use"):
        data.find(data_config(name="launch.data:pairs", **{setting: value}))


def test_the_number_of_classes_is_a_whole_number():
    split = pairs().train
    assert type(data.Arrays(split, split, np.max(split.labels) + 1).classes) is int
    for wrong in (0, 2.0, "3", None):
        with pytest.raises(data.DataError, match=f"classes={wrong!r}: expected a whole number above 0"):
            data.Arrays(split, split, wrong)
