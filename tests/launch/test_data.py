import itertools

import numpy as np
import pytest
from ml_collections import ConfigDict

from launch import data

TFDS = {"name": "cifar10", "data_dir": None, "download": False, "image_size": None}


@pytest.fixture(scope="module")
def digits():
    return data.load(data.Digits(), valid_examples=200, seed=0)


def rows(split):
    return {image.tobytes() for image in split.images}


def test_digits_splits_never_overlap_and_lose_nothing(digits):
    source = data.Digits()
    pool, test = source.read()
    assert len(pool) == source.train_examples == len(digits.train) + len(digits.valid)
    assert len(pool) + len(test) == 1797
    assert digits.train.images.shape[1:] == source.image_shape
    assert set(digits.train.labels) == set(range(source.classes))
    # Equal images do occur in the data; count them with their positions instead.
    order = np.random.default_rng(0).permutation(len(pool))
    np.testing.assert_array_equal(pool.images[order[:200]], digits.valid.images)
    np.testing.assert_array_equal(pool.images[order[200:]], digits.train.images)
    assert not rows(digits.train) & rows(digits.test)


def test_normalised_images_have_mean_0_and_deviation_1(digits):
    x = digits.normalized(digits.train.images)
    assert x.dtype == np.float32
    assert abs(x.mean()) < 1e-4
    assert abs(x.std() - 1) < 1e-3


@pytest.mark.parametrize("augment", ["none", "crop_flip"])
def test_a_stream_can_be_entered_anywhere(digits, augment):
    settings = {"split": "train", "batch_size": 300, "seed": 3, "augment": augment}
    whole = list(itertools.islice(data.train_batches(digits, **settings), 12))
    late = list(itertools.islice(data.train_batches(digits, first_step=7, **settings), 5))
    for expected, found in zip(whole[7:], late, strict=True):
        np.testing.assert_array_equal(expected["image"], found["image"])
        np.testing.assert_array_equal(expected["label"], found["label"])


def test_an_epoch_visits_every_example_once_in_a_new_order(digits):
    batches = list(itertools.islice(data.train_batches(digits, split="valid", batch_size=50, seed=0), 8))
    first, second = (np.concatenate([b["label"] for b in part]) for part in (batches[:4], batches[4:]))
    assert sorted(first) == sorted(second) == sorted(digits.valid.labels)
    assert not np.array_equal(first, second)


def test_crops_and_flips_are_shifts_and_mirrors():
    image = np.arange(64, dtype=np.uint8).reshape(1, 8, 8, 1)
    padded = np.pad(image[0, ..., 0], 1, mode="reflect")
    windows = [padded[r : r + 8, c : c + 8] for r in range(3) for c in range(3)]
    allowed = {w.tobytes() for w in windows} | {w[:, ::-1].tobytes() for w in windows}
    found = {data._crop_flip(image, np.random.default_rng(s))[0, ..., 0].tobytes() for s in range(200)}
    assert found == allowed


def test_evaluation_batches_cover_the_split_and_pad_with_no_label(digits):
    batches = list(data.eval_batches(digits, split="test", batch_size=100))
    labels = np.concatenate([b["label"] for b in batches])
    assert len(labels) == 400
    np.testing.assert_array_equal(labels[:360], digits.test.labels)
    assert (labels[360:] == -1).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split": "valid", "batch_size": 201}, "a batch of 201 is larger than the valid split, which has 200"),
        ({"split": "train", "batch_size": 8, "augment": "mixup"}, "unknown augmentation 'mixup'"),
    ],
)
def test_streams_that_cannot_be_are_refused(digits, settings, message):
    with pytest.raises(data.DataError, match=message):
        next(data.train_batches(digits, seed=0, **settings))


def test_settings_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(data.DataError, match=r"valid_examples=1437: expected 1…1436"):
        data.load(data.Digits(), valid_examples=1437, seed=0)
    with pytest.raises(data.DataError, match="no data set 'cifar11'"):
        data.find(ConfigDict(TFDS | {"name": "cifar11"}))
    with pytest.raises(data.DataError, match=r"no split test, train prepared in .*download=True"):
        data.find(ConfigDict(TFDS | {"data_dir": str(tmp_path)}))
    with pytest.raises(data.DataError, match=r"features \['label', 'text'\]: expected image and label"):
        data.find(ConfigDict(TFDS | {"name": "imdb_reviews", "data_dir": str(tmp_path)}))


def test_resizing_by_whole_numbers_averages():
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    expected = image.reshape(4, 2, 4, 2, 3).mean((1, 3))
    assert np.abs(data._resized(image, 4) - expected).max() <= 1  # Pillow rounds along each axis
    assert data._resized(image, 8) is image
    assert data._resized(image, None) is image


def test_cifar10_is_read_without_tensorflow(tfds_dir):
    source = data.find(ConfigDict(TFDS | {"data_dir": str(tfds_dir), "image_size": 16}))
    assert (source.image_shape, source.classes, source.train_examples) == ((16, 16, 3), 10, 50000)
    records = source._builder.as_data_source()["test"]
    split = source._decode([records[i] for i in range(20)])
    assert split.images.shape == (20, 16, 16, 3)
    assert set(split.labels) <= set(range(10))
