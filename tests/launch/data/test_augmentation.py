import numpy as np
import pytest

from launch.data import augmentation


def random_images(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_resizing_by_whole_numbers_averages():
    image = random_images(8, 8, 3)
    expected = image.reshape(4, 2, 4, 2, 3).mean((1, 3))
    assert np.abs(augmentation.resized(image, (4, 4)) - expected).max() <= 1  # Pillow rounds along each axis
    assert augmentation.resized(image, (8, 8)) is image
    assert augmentation.resized(image, (2, 6)).shape == (2, 6, 3)


def cropped(image, region, size):
    return augmentation.region_resized(image, region, size)


def test_channels_are_resized_together_as_alone():
    image = random_images(50, 37, 3)
    for size, resampling in (((20, 31), augmentation.CUBIC), ((25, 13), augmentation.AVERAGE)):
        alone = [augmentation.resized(image[..., c : c + 1], size, resampling) for c in range(3)]
        np.testing.assert_array_equal(augmentation.resized(image, size, resampling), np.concatenate(alone, -1))


def test_the_central_region_is_seven_eighths_of_the_shorter_side():
    assert augmentation.central_region((64, 96), (28, 28))[:4] == (4, 20, 56, 56)
    assert augmentation.central_region((2, 1), (28, 28))[:4] == (0, 0, 1, 1)
    image = np.zeros((64, 96, 3), np.uint8)
    image[4:60, 20:76] = 200
    assert (cropped(image, augmentation.central_region((64, 96), (28, 28)), (28, 28)) == 200).all()


def test_random_regions_have_the_published_areas_and_shapes():
    rng = np.random.default_rng(0)
    regions = np.asarray([augmentation.random_region((256, 256), rng)[:4] for _ in range(2000)])
    assert ((regions >= 0) & (regions[:, :2] + regions[:, 2:] <= 256).all(1, keepdims=True)).all()
    areas, shapes = regions[:, 2] * regions[:, 3] / 256**2, regions[:, 3] / regions[:, 2]
    assert 0.079 < areas.min() < 0.09 and 0.95 < areas.max() <= 1.0
    # Regions that do not fit are drawn again, so that the mean is a little below the middle of 0.08…1.
    assert 0.45 < np.mean(areas) < 0.52
    assert 0.74 < shapes.min() < 0.77 and 1.3 < shapes.max() < 1.35
    room = 256 - regions[:, 2]
    assert abs(np.mean(regions[:, 0][room > 20] / room[room > 20]) - 0.5) < 0.03


@pytest.mark.parametrize(
    ("image", "expected"),
    [((2, 400), (0, 198, 2, 3)), ((400, 2), (198, 0, 3, 2)), ((4, 4), (0, 0, 4, 4)), ((1, 90), (0, 44, 1, 1))],
)
def test_where_no_region_fits_it_is_torchvisions(image, expected):
    """As `RandomResizedCrop.get_params` of torchvision 0.29 gives after ten attempts."""

    class NoFit:
        def uniform(self, low, high):
            return high  # of the area, and 4:3

        def integers(self, high):
            raise AssertionError

    assert augmentation.random_region(image, NoFit())[:4] == expected


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
