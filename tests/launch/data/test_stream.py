import itertools

import numpy as np
import pytest

from launch import data
from launch.data.augmentation import AUGMENTATIONS, Mixing, centre_crop
from launch.data.images import IMAGENET_DEVIATION, IMAGENET_MEAN, ImageBatches
from launch.data.stream import Stream

NORMALIZED = ImageBatches(IMAGENET_MEAN, IMAGENET_DEVIATION, AUGMENTATIONS["none"], Mixing(0.0, 0.0, 0.0))


def records(count):
    """Images of different sizes, each of one colour, by which it is known."""
    rng = np.random.default_rng(0)
    return [
        {"image": np.full((*rng.integers(6, 20, 2), 3), i, np.uint8), "label": np.int64(i % 10)} for i in range(count)
    ]


def stream(*, workers=0, augment="resized_crop_flip", make_batch=NORMALIZED):
    return Stream(
        records(100),
        records(7),
        size=(8, 8),
        fit=centre_crop,
        augmentation=AUGMENTATIONS[augment],
        make_batch=make_batch,
        valid_examples=40,
        seed=5,
        workers=workers,
    )


def colours(batches):
    x = np.concatenate([batch["input"] for batch in batches])[:, 0, 0]
    return np.rint(x * IMAGENET_DEVIATION + IMAGENET_MEAN)[:, 0].astype(int)


def take(found, split, count, first_step=0, *, augmented=True):
    batches = found.train_batches(split, batch_size=20, first_step=first_step, augmented=augmented)
    return list(itertools.islice(batches, count))


def test_an_epoch_visits_every_example_once_in_a_new_order():
    batches = take(stream(), "train", 6)
    first, second = colours(batches[:3]), colours(batches[3:])
    assert len(set(first)) == 60
    assert sorted(first) == sorted(second)
    assert list(first) != list(second)
    valid = colours(take(stream(), "valid", 2, augmented=False))
    assert set(first) | set(valid) == set(range(100))
    for batch in batches:
        np.testing.assert_array_equal(batch["label"], colours([batch]) % 10)
        assert batch["input"].shape == (20, 8, 8, 3) and batch["input"].dtype == np.float32


def test_a_stream_can_be_entered_anywhere_and_knows_only_its_seed():
    mixing = ImageBatches(IMAGENET_MEAN, IMAGENET_DEVIATION, AUGMENTATIONS["none"], Mixing(0.8, 1.0, 0.5))
    whole = take(stream(augment="rand_augment", make_batch=mixing), "train", 8)
    late = take(stream(augment="rand_augment", make_batch=mixing), "train", 4, first_step=4)
    for expected, found in zip(whole[4:], late, strict=True):
        assert set(found) == {"input", "label", "mixed_label", "label_share"}
        for name in found:
            np.testing.assert_array_equal(expected[name], found[name])


def test_processes_give_what_threads_give():
    for expected, found in zip(take(stream(), "train", 4), take(stream(workers=2), "train", 4), strict=True):
        np.testing.assert_array_equal(expected["input"], found["input"])


def test_evaluation_keeps_the_order_and_pads():
    batches = list(stream().eval_batches("test", batch_size=5))
    np.testing.assert_array_equal(colours(batches)[:7], range(7))
    assert list(batches[1]["label"]) == [5, 6, -1, -1, -1]
    assert batches[1]["input"].shape == (5, 8, 8, 3)


def test_cifar10_streams_what_memory_holds(tfds_dir, data_config):
    settings = {"name": "cifar10", "data_dir": str(tfds_dir), "augment": "crop_flip"}
    source = data.find(data_config(stream=True, **settings))
    found = source.open(valid_examples=5000, seed=0)
    batch = next(found.eval_batches("test", batch_size=64))
    records = source._builder.as_data_source()["test"]
    pixels = np.stack([records[i]["image"] for i in range(64)])
    np.testing.assert_allclose(batch["input"], (pixels - IMAGENET_MEAN) / IMAGENET_DEVIATION, rtol=1e-6)
    np.testing.assert_array_equal(batch["label"], [records[i]["label"] for i in range(64)])
    trained = next(found.train_batches("train", batch_size=32, first_step=1000, augmented=True))
    assert trained["input"].shape == (32, 32, 32, 3)


def test_a_batch_larger_than_the_split_is_refused():
    with pytest.raises(data.DataError, match="a batch of 41 is larger than the valid split, which has 40"):
        stream().train_batches("valid", batch_size=41, first_step=0, augmented=False)
