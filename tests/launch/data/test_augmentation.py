import numpy as np
import pytest

from launch.data import augmentation
from launch.data.augmentation import Mixing


def random_images(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_resizing_by_whole_numbers_averages():
    image = random_images(8, 8, 3)
    expected = image.reshape(4, 2, 4, 2, 3).mean((1, 3))
    assert np.abs(augmentation.resized(image, (4, 4)) - expected).max() <= 1  # Pillow rounds along each axis
    assert augmentation.resized(image, (8, 8)) is image
    assert augmentation.resized(image, (2, 6)).shape == (2, 6, 3)


def test_the_centre_crop_is_seven_eighths_of_the_shorter_side():
    image = np.zeros((64, 96, 3), np.uint8)
    image[4:60, 20:76] = 200  # 56 pixels, in the middle
    assert (augmentation.centre_crop(image, (28, 28)) == 200).all()
    image[:] = 200
    image[10:12] = 0
    assert (augmentation.centre_crop(image, (32, 32)) < 200).any()


def test_random_crops_have_the_published_areas_and_shapes():
    # A picture that says where each pixel is tells what was cropped.
    size = 256
    rows, columns = np.mgrid[:size, :size].astype(np.uint8)
    image = np.stack([rows, columns, rows], -1)
    areas, shapes = [], []
    for seed in range(400):
        crop = augmentation.random_resized_crop(image, (64, 64), np.random.default_rng(seed)).astype(float)
        height, width = (np.ptp(crop[..., axis]) + 1 for axis in (0, 1))
        areas.append(height * width / size**2)
        shapes.append(width / height)
    assert 0.05 < min(areas) < 0.12 and 0.9 < max(areas) <= 1.0
    # Crops that do not fit are drawn again, so that the mean is a little below the middle of 0.08…1.
    assert 0.42 < np.mean(areas) < 0.54
    assert 0.72 < min(shapes) < 0.8 and 1.25 < max(shapes) < 1.4


def test_crops_that_cannot_be_fall_back_to_the_centre():
    image = random_images(2, 400, 3)
    found = augmentation.random_resized_crop(image, (16, 16), np.random.default_rng(0))
    assert found.shape == (16, 16, 3)


def test_crops_and_flips_are_shifts_and_mirrors():
    image = np.arange(64, dtype=np.uint8).reshape(1, 8, 8, 1)
    padded = np.pad(image[0, ..., 0], 1, mode="reflect")
    windows = [padded[r : r + 8, c : c + 8] for r in range(3) for c in range(3)]
    allowed = {w.tobytes() for w in windows} | {w[:, ::-1].tobytes() for w in windows}
    found = {augmentation.crop_flip(image, np.random.default_rng(s))[0, ..., 0].tobytes() for s in range(200)}
    assert found == allowed


def test_flips_mirror_about_half():
    images = random_images(400, 4, 4, 3)
    flipped = augmentation.flip(images, np.random.default_rng(0))
    mirrored = (flipped == images[:, :, ::-1]).all((1, 2, 3))
    assert (mirrored | (flipped == images).all((1, 2, 3))).all()
    assert 150 < mirrored.sum() < 250


def test_every_operation_of_rand_augment_changes_a_picture():
    from PIL import Image

    picture = Image.fromarray(random_images(16, 16, 3) // 2 + 40)
    for operation in augmentation._SIGNED_OPERATIONS:
        there, back = (np.asarray(operation(picture, strength)) for strength in (0.9, -0.9))
        assert there.shape == back.shape == (16, 16, 3)
        assert not np.array_equal(there, back)
        np.testing.assert_array_equal(np.asarray(operation(picture, 0.0)), np.asarray(picture))
    for operation in augmentation._UNSIGNED_OPERATIONS:
        assert not np.array_equal(np.asarray(operation(picture, 0.9)), np.asarray(picture))


def test_rand_augment_depends_on_the_generator_alone():
    images = random_images(40, 8, 8, 3)
    first, again, other = (augmentation.rand_augment(images, np.random.default_rng(s)) for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert first.dtype == np.uint8 and first.shape == images.shape


def batch():
    x = np.arange(6, dtype=np.float32)[:, None, None, None] * np.ones((1, 8, 8, 3), np.float32)
    return {"input": x, "label": np.arange(6, dtype=np.int32)}


def test_mixup_averages_with_the_batch_in_reverse():
    mixed = Mixing(0.8, 0.0, 0.0)(batch(), np.random.default_rng(0))
    share = mixed["label_share"]
    assert share.shape == (6,) and 0 < share[0] < 1
    np.testing.assert_array_equal(mixed["mixed_label"], [5, 4, 3, 2, 1, 0])
    expected = share * np.arange(6) + (1 - share) * np.arange(6)[::-1]
    np.testing.assert_allclose(mixed["input"][:, 0, 0, 0], expected, rtol=1e-6)
    assert mixed["input"].dtype == np.float32


def test_cutmix_pastes_a_rectangle_and_shares_labels_by_its_area():
    for seed in range(10):
        mixed = Mixing(0.0, 1.0, 0.0)(batch(), np.random.default_rng(seed))
        own = (mixed["input"][0] == 0).all(-1)
        assert ((mixed["input"][0] == 5).all(-1) | own).all()
        np.testing.assert_allclose(mixed["label_share"], own.mean())
        rows, columns = np.nonzero(~own)
        if rows.size:  # a rectangle
            assert rows.size == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)


def test_both_mixtures_are_taken_in_turn_and_neither_leaves_the_batch_alone():
    both = [Mixing(0.8, 1.0, 0.0)(batch(), np.random.default_rng(s))["input"][0] for s in range(40)]
    averaged = sum(len(np.unique(image)) == 1 and image.max() not in (0, 5) for image in both)
    assert 8 < averaged < 32
    unchanged = Mixing(0.0, 0.0, 0.0)(batch(), np.random.default_rng(0))
    assert set(unchanged) == {"input", "label"}
    np.testing.assert_array_equal(unchanged["input"], batch()["input"])


@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
def test_erasing_replaces_a_rectangle_of_some_images(probability):
    images = {"input": np.full((200, 16, 16, 3), 9, np.float32), "label": np.zeros(200, np.int32)}
    erased = (Mixing(0.0, 0.0, probability)(images, np.random.default_rng(0))["input"] != 9).any(-1)
    touched = erased.any((1, 2)).mean()
    assert abs(touched - probability) < 0.1
    assert erased.mean((1, 2)).max() < 0.36
    assert (images["input"] == 9).all()  # the batch that was given is left alone
