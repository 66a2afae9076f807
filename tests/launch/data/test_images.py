import itertools
import types

import numpy as np
import pytest

from launch import data
from launch.data.augmentation import resized


@pytest.fixture(scope="module")
def digits(data_config):
    return data.find(data_config()).open(valid_examples=200, seed=0)


def test_the_digits_are_scikit_learns(data_config):
    source = data.find(data_config())
    pool, test = source.read()
    assert len(pool) == source.train_examples
    assert len(pool) + len(test) == 1797
    assert pool.inputs.shape[1:] == source.example.shape
    assert set(pool.labels) == set(test.labels) == set(range(source.classes))
    assert not {image.tobytes() for image in pool.inputs} & {image.tobytes() for image in test.inputs}


def test_batches_of_training_images_have_mean_0_and_deviation_1(digits):
    x = np.concatenate([batch["input"] for batch in digits.eval_batches("train", batch_size=1237)])
    assert x.dtype == np.float32
    assert abs(x.mean()) < 1e-4
    assert abs(x.std() - 1) < 1e-3


@pytest.mark.parametrize("augment", ["none", "crop_flip", "resized_crop_flip", "rand_augment"])
def test_augmentation_changes_training_images_and_nothing_else(digits, augment, data_config):
    changed = data.find(data_config(augment=augment)).open(valid_examples=200, seed=0)
    settings = {"batch_size": 100, "first_step": 2}
    plain = next(digits.train_batches("train", augmented=False, **settings))
    found = next(changed.train_batches("train", augmented=True, **settings))
    np.testing.assert_array_equal(found["label"], plain["label"])
    assert np.array_equal(found["input"], plain["input"]) == (augment == "none")
    for split in ("train", "valid"):
        np.testing.assert_array_equal(
            next(changed.train_batches(split, augmented=False, **settings))["input"],
            next(digits.train_batches(split, augmented=False, **settings))["input"],
        )
    again = itertools.islice(changed.train_batches("train", batch_size=100, first_step=0, augmented=True), 3)
    np.testing.assert_array_equal(list(again)[2]["input"], found["input"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"augment": "blur"}, r"data.augment='blur': expected one of none, crop_flip"),
        ({"mixup": -1.0}, r"data.mixup=-1.0: expected 0 \(off\) or a positive number"),
        ({"erasing": 1.5}, r"data.erasing=1.5: expected a probability"),
        ({"image_size": 16}, "data.image_size=16: digits have 8 pixels a side"),
        ({"stream": True}, "data.stream=True: data.name='digits' does not use it, expected False"),
        ({"workers": 4}, "data.workers=4: data.name='digits' does not use it"),
        ({"name": "cifar11"}, "no data set 'cifar11'"),
        ({"name": "cifar10", "image_size": 0}, "data.image_size=0: expected a number of pixels above 0"),
        ({"name": "cifar10", "decoder": "dali"}, "data.decoder='dali': expected one of pillow, simplejpeg"),
        (
            {"name": "cifar10", "on_bad_record": "skip"},
            "data.on_bad_record='skip': expected 'error', unless images are",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message, data_config):
    with pytest.raises(data.DataError, match=message):
        data.find(data_config(**settings))


def test_tfds_sets_that_do_not_fit_are_refused(tmp_path, data_config):
    with pytest.raises(data.DataError, match=r"no split test, train prepared in .*download=True"):
        data.find(data_config(name="cifar10", data_dir=str(tmp_path)))
    with pytest.raises(data.DataError, match=r"features \['label', 'text'\]: expected image and label"):
        data.find(data_config(name="imdb_reviews", data_dir=str(tmp_path)))


@pytest.mark.parametrize(("name", "missing"), [("digits", "augment, mixup"), ("cifar10", "data_dir, download")])
def test_settings_that_a_data_set_needs_are_named(name, missing, data_config):
    config = data_config(name=name)
    for key in missing.split(", "):
        del config[key]
    with pytest.raises(data.DataError, match=f"data.name='{name}': config.data lacks {missing}, see configs/common"):
        data.find(config)


def test_an_image_held_in_memory_that_cannot_be_read_is_named(tfds_dir, data_config):
    source = data.find(data_config(name="cifar10", data_dir=str(tfds_dir)))
    record = {"image": b"no image", "label": 1}
    with pytest.raises(data.DataError, match=r"test: record 0: .*cannot identify image file.*: expected an image file"):
        source._decoded("test", [record])


def test_sets_of_tfds_without_images_of_eight_bits_are_refused(data_config, monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")
    image, label = tfds.features.Image(shape=(8, 8, 1)), tfds.features.ClassLabel(num_classes=3)

    def found(**features):
        splits = dict.fromkeys(("train", "test"), types.SimpleNamespace(num_examples=9))
        info = types.SimpleNamespace(features={"image": image, "label": label} | features, splits=splits)
        monkeypatch.setattr(tfds, "builder", lambda *_, **__: types.SimpleNamespace(info=info))
        return data.find(data_config(name="some_set"))

    assert (found().example.shape, found().classes) == ((8, 8, 1), 3)
    for features, message in (
        (
            {"image": tfds.features.Image(shape=(8, 8, 1), dtype=np.uint16)},
            "'some_set': images are uint16: expected",
        ),
        ({"image": tfds.features.Image(shape=(8, 8, 1), dtype=np.float32)}, "images are float32: expected uint8"),
        ({"image": tfds.features.Tensor(shape=(8, 8), dtype=np.uint8)}, "expected images and class labels"),
        ({"label": tfds.features.Scalar(np.int32)}, "expected images and class labels"),
    ):
        with pytest.raises(data.DataError, match=message):
            found(**features)


def test_cifar10_is_read_without_tensorflow(tfds_dir, data_config):
    source = data.find(data_config(name="cifar10", data_dir=str(tfds_dir), image_size=16))
    assert (source.example.shape, source.classes, source.train_examples) == ((16, 16, 3), 10, 50000)
    records = source._builder.as_data_source()["test"]
    found = []
    source._decoded = lambda split, records, decoded=source._decoded: (
        found.append(decoded(split, [records[i] for i in range(20)])) or found[-1]
    )
    source.open(valid_examples=5, seed=0)
    split = found[1]
    assert split.inputs.shape == (20, 16, 16, 3)
    pixels = np.stack([resized(records[i]["image"], (16, 16)) for i in range(20)])
    np.testing.assert_array_equal(split.inputs, pixels)
    assert set(split.labels) <= set(range(10))
