"""What is mixed is derived anew in NumPy from what the images show: each is of one colour, by which it is known."""

import jax
import numpy as np

from launch.data.mixing import DRAW, Mixing, normalized


def batch(seed=0, count=6, side=8):
    x = np.arange(count, dtype=np.float32)[:, None, None, None] * np.ones((1, side, side, 3), np.float32)
    draw = np.random.default_rng(seed).integers(2**32, size=count, dtype=np.uint32)
    return {"input": x, "label": np.arange(count, dtype=np.int32), DRAW: draw}


def mixed(mixing, seeds):
    """The batches of seeds by one compiled function."""
    function = jax.jit(mixing)
    found = [jax.device_get(function(batch(seed))) for seed in range(seeds)]
    assert function._cache_size() == 1
    return found


def test_pixels_are_normalised_as_on_the_host():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 4, 3), dtype=np.uint8)
    mean, deviation = np.asarray([123.7, 116.3, 103.5], np.float32), np.asarray([58.4, 57.1, 57.4], np.float32)
    found = jax.jit(lambda x: normalized(x, mean, deviation))(pixels)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, (pixels.astype(np.float64) - mean) / deviation, rtol=3e-7, atol=1e-7)


def test_cutmix_pastes_a_rectangle_and_shares_labels_by_its_area():
    every = mixed(Mixing(0.0, 1.0, 0.0), 100)
    # Uniform for a concentration of 1, but for what the border cuts off: of half an image on average, a third or so.
    assert 0.6 < np.mean([found["label_share"][0] for found in every]) < 0.75
    for found in every:
        own = found["input"] == np.arange(6, dtype=np.float32)[:, None, None, None]
        others = found["input"] == np.arange(6, dtype=np.float32)[::-1, None, None, None]
        assert (own ^ others).all() and (own == own[:1, ..., :1]).all()
        np.testing.assert_allclose(found["label_share"], own[0, ..., 0].mean())
        rows, columns = np.nonzero(others[0, ..., 0])
        if rows.size:  # a rectangle
            assert rows.size == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)


def test_mixup_averages_with_the_batch_in_reverse_in_turn_with_cutmix():
    every = mixed(Mixing(0.8, 1.0, 0.0), 40)
    averaged = [found for found in every if np.ptp(found["input"][0]) == 0 and found["label_share"][0] not in (0, 1)]
    assert 8 < len(averaged) < 32
    for found in averaged:
        share = found["label_share"]
        assert share.shape == (6,) and 0 < share[0] < 1
        np.testing.assert_array_equal(found["mixed_label"], [5, 4, 3, 2, 1, 0])
        expected = share * np.arange(6) + (1 - share) * np.arange(6)[::-1]
        np.testing.assert_allclose(found["input"], expected[:, None, None, None] * np.ones((8, 8, 3)), rtol=1e-6)
        assert found["input"].dtype == np.float32 and DRAW not in found


def test_what_is_off_leaves_the_batch_alone():
    assert not Mixing(0.0, 0.0, 0.0).draws and all(Mixing(*row).draws for row in np.eye(3))
    given = {name: value for name, value in batch().items() if name != DRAW}
    assert Mixing(0.8, 1.0, 1.0)(given) is given


def test_erasing_replaces_a_rectangle_inside_of_some_images():
    count, side, probability = 600, 32, 0.5
    images = np.full((count, side, side, 3), 9, np.float32)
    draw = np.random.default_rng(1).integers(2**32, size=count, dtype=np.uint32)
    erase = jax.jit(Mixing(0.0, 0.0, probability))
    found = erase({"input": images, "label": np.zeros(count, np.int32), DRAW: draw})
    assert set(found) == {"input", "label"}
    x = np.asarray(found["input"])
    erased = (x != 9).any(-1)
    touched = erased.any((1, 2))
    assert abs(touched.mean() - probability) < 0.1
    boxes = [np.nonzero(mask) for mask in erased[touched]]
    rows, columns = (np.asarray([np.ptp(box[axis]) + 1 for box in boxes]) for axis in (0, 1))
    areas, shapes = rows * columns / side**2, columns / rows
    np.testing.assert_allclose(areas, erased[touched].mean((1, 2)))  # rectangles, whole
    # Nothing is cut off: areas are uniform in 2…33 % but for rounding, and for shapes that fit into no image.
    assert 0.015 < areas.min() < 0.04 and 0.28 < areas.max() < 0.35
    assert 0.15 < areas.mean() < 0.19
    assert shapes.min() > 0.25 and shapes.max() < 4
    noise = x[erased]
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
    # Of all places: the first row and the last are reached alike.
    first, last = (np.mean([side_ in box[0] for box in boxes]) for side_ in (0, side - 1))
    assert first > 0.02 and last > 0.02
    # Each image by its own number, whatever else is in the batch.
    again = erase({"input": images, "label": np.zeros(count, np.int32), DRAW: draw[::-1].copy()})
    np.testing.assert_array_equal(again["input"], x[::-1])
