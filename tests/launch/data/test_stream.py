import io
import itertools
import multiprocessing
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from PIL import Image

from configs import fliqs_digits
from launch import data
from launch.data import stream
from launch.data.augmentation import AUGMENTATIONS, central_region
from launch.data.contract import first_batch
from launch.data.decoding import pillow
from launch.data.image_records import Reading
from launch.data.images import IMAGENET_DEVIATION, IMAGENET_MEAN
from launch.data.mixing import DRAW, Mixing
from launch.data.stream import Stream
from launch.training import dry_run


def file(image, kind="PNG", **settings):
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **settings)
    return buffer.getvalue()


def records(count):
    """Images of different sizes, each of one colour, by which it is known."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(6, 20, (count, 2))
    return [
        {"image": file(np.full((*size, 3), i, np.uint8)), "label": np.int64(i % 10)} for i, size in enumerate(sizes)
    ]


def damaged(examples, bad):
    """The examples, of which some are only the first half of a file."""
    for i in set(bad) & set(range(len(examples))):
        examples[i] |= {"image": examples[i]["image"][:40], "file_name": f"n{i}.JPEG".encode()}
    return examples


PLAIN = Mixing(0.0, 0.0, 0.0)


def make_stream(*, workers=0, augment="resized_crop_flip", mixing=PLAIN, bad=(), skip_bad=False):
    return Stream(
        damaged(records(100), bad),
        damaged(records(7), bad),
        reading=Reading(pillow, (8, 8), 3, central_region, AUGMENTATIONS[augment]),
        mean=IMAGENET_MEAN,
        deviation=IMAGENET_DEVIATION,
        mixing=mixing,
        skip_bad=skip_bad,
        valid_examples=40,
        seed=5,
        workers=workers,
    )


def colours(batches):
    return np.concatenate([batch["input"] for batch in batches])[:, 0, 0, 0].astype(int)


def take(found, split, count, first_step=0, *, augmented=True):
    batches = found.train_batches(split, batch_size=20, first_step=first_step, augmented=augmented)
    return list(itertools.islice(batches, count))


def test_an_epoch_visits_every_example_once_in_a_new_order():
    batches = take(make_stream(), "train", 6)
    first, second = colours(batches[:3]), colours(batches[3:])
    assert len(set(first)) == 60
    assert sorted(first) == sorted(second)
    assert list(first) != list(second)
    valid = colours(take(make_stream(), "valid", 2, augmented=False))
    assert set(first) | set(valid) == set(range(100))
    for batch in batches:
        np.testing.assert_array_equal(batch["label"], colours([batch]) % 10)
        assert batch["input"].shape == (20, 8, 8, 3) and batch["input"].dtype == np.uint8


def test_a_stream_can_be_entered_anywhere_and_knows_only_its_seed():
    """Chunks are of 20, 4, and 1 image."""
    mixing = Mixing(0.8, 1.0, 0.5)
    for size in (20, 17, 44):
        settings = {"batch_size": size, "augmented": True}
        found = make_stream(augment="rand_augment", mixing=mixing)
        whole = list(itertools.islice(found.train_batches("train", first_step=0, **settings), 8))
        late = make_stream(augment="rand_augment", mixing=mixing).train_batches("train", first_step=5, **settings)
        for expected, batch in zip(whole[5:], late, strict=False):
            assert set(batch) == {"input", "label", DRAW}
            for name in batch:
                np.testing.assert_array_equal(expected[name], batch[name])
    assert len({batch[DRAW].tobytes() for batch in whole}) == 8


def test_processes_give_what_threads_give_and_end_with_the_iterators(capfd):
    expected = take(make_stream(), "train", 4, first_step=2)
    batches = make_stream(workers=2).train_batches("train", batch_size=20, first_step=2, augmented=True)
    for batch, found in zip(expected, batches, strict=False):
        np.testing.assert_array_equal(batch["input"], found["input"])
    assert len(multiprocessing.active_children()) == 2
    stream._close_all()  # as at exit
    assert not multiprocessing.active_children()
    assert capfd.readouterr().err == ""


KILLED = """
import multiprocessing, os, signal
from tests.launch.data.test_stream import make_stream
batches = make_stream(workers=1).train_batches("train", batch_size=20, first_step=0, augmented=True)
next(batches)
print(*[child.pid for child in multiprocessing.active_children()], flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def is_alive(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_workers_die_with_a_killed_parent():
    done = subprocess.run([sys.executable, "-c", KILLED], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    until = time.monotonic() + 60
    while is_alive(int(done.stdout)):
        assert time.monotonic() < until
        time.sleep(0.05)


def test_the_device_normalises_and_mixes():
    found = make_stream(mixing=Mixing(0.8, 0.0, 0.0))
    (batch,) = take(found, "train", 1)
    ready = jax.device_get(found.on_device(batch))
    pixels = (batch["input"].astype(np.float64) - IMAGENET_MEAN) / IMAGENET_DEVIATION
    share = ready["label_share"][0]
    np.testing.assert_allclose(ready["input"], share * pixels + (1 - share) * pixels[::-1], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(ready["mixed_label"], batch["label"][::-1])
    plain = {name: batch[name] for name in ("input", "label")}
    assert set(found.on_device(plain)) == set(plain)


def test_validation_is_decoded_once_or_anew_if_it_is_too_large(monkeypatch):
    decoded = []
    found = make_stream()
    plain = Reading.plain
    monkeypatch.setattr(Reading, "plain", lambda self, record: decoded.append(0) or plain(self, record))
    kept = [take(found, "valid", 3, augmented=False), list(found.eval_batches("valid", batch_size=16))]
    take(found, "valid", 9, augmented=False)
    assert len(decoded) == 40
    monkeypatch.setattr(stream, "KEPT_BYTES", 40 * 192 - 1)
    large = make_stream()
    anew = [take(large, "valid", 3, augmented=False), list(large.eval_batches("valid", batch_size=16))]
    assert len(decoded) > 40 + 80
    for expected, given in zip(kept[1], anew[1], strict=True):
        np.testing.assert_array_equal(expected["input"], given["input"])
        np.testing.assert_array_equal(expected["label"], given["label"])
    for batches in (kept[0], anew[0]):
        assert sorted(colours(batches[:2])) == sorted(colours(kept[1])[:40])
        assert len(set(colours(batches[:2]))) == 40


def test_the_memory_of_a_stream_is_told(monkeypatch):
    """Images of 192 bytes in batches of 20 and 16, 40 kept or none."""
    kept = make_stream(workers=2).host_bytes(20, 16) - 3 * stream.PROCESS_BYTES
    assert kept == 192 * (4 * 20 + 2 * 16 + 40 + 2 * 3 * 32)
    monkeypatch.setattr(stream, "KEPT_BYTES", 0)
    anew = make_stream(workers=2).host_bytes(20, 16) - 5 * stream.PROCESS_BYTES
    assert anew == 192 * (4 * (20 + 16) + 2 * 2 * 3 * 32)
    told = dry_run._host_memory(make_stream(), fliqs_digits.get_config())
    assert told == {"host memory": "at most about 0.2 GiB for images and the 0 workers"}
    assert dry_run._host_memory(None, fliqs_digits.get_config()) == {}


@pytest.mark.parametrize("augmented", [True, False])
def test_what_batches_are_like_is_known_from_one_record(augmented, monkeypatch):
    found = make_stream(mixing=Mixing(0.8, 0.0, 0.0))
    (batch,) = take(found, "train", 1, augmented=augmented)
    monkeypatch.setattr(Stream, "_read", None)
    example = first_batch(found, "train", batch_size=20, augmented=augmented)
    kinds = [{name: (value.shape, value.dtype) for name, value in b.items()} for b in (batch, example)]
    assert kinds[0] == kinds[1] and (DRAW in example) == augmented
    assert example["input"].shape[1:] == found.example.shape and example["input"].dtype == found.example.dtype
    example = first_batch(found, "test", batch_size=10**9)
    assert example["input"].shape == (10**9, 8, 8, 3)


def test_evaluation_keeps_the_order_and_pads():
    batches = list(make_stream().eval_batches("test", batch_size=5))
    np.testing.assert_array_equal(colours(batches)[:7], range(7))
    assert list(batches[1]["label"]) == [5, 6, -1, -1, -1]
    assert batches[1]["input"].shape == (5, 8, 8, 3)


def test_cifar10_streams_what_memory_holds(tfds_dir, data_config):
    settings = {"name": "cifar10", "data_dir": str(tfds_dir), "augment": "crop_flip"}
    source = data.find(data_config(stream=True, **settings))
    found = source.open(valid_examples=5000, seed=0)
    batch = next(found.eval_batches("test", batch_size=64))
    records = source._builder.as_data_source()["test"]
    np.testing.assert_array_equal(batch["input"], np.stack([records[i]["image"] for i in range(64)]))
    np.testing.assert_array_equal(batch["label"], [records[i]["label"] for i in range(64)])
    trained = next(found.train_batches("train", batch_size=32, first_step=1000, augmented=True))
    assert trained["input"].shape == (32, 32, 32, 3)


def members():
    """Numbers of the training and of the validation records."""
    found = make_stream()
    return (np.asarray(found._splits[split].indices) for split in ("train", "valid"))


def test_a_record_that_cannot_be_read_is_named():
    train, valid = members()
    message = r"{}: record {}, n{}.JPEG: .*: expected an image file; with data.on_bad_record='skip', records"
    found = make_stream(bad=[train[0], 3])
    with pytest.raises(data.DataError, match=message.format("train", train[0], train[0])):
        take(found, "train", 3)
    with pytest.raises(data.DataError, match=message.format("test", 3, 3)):
        list(found.eval_batches("test", batch_size=4))
    with pytest.raises(data.DataError, match=message.format("train", train[0], train[0])):
        first_batch(found, "train", batch_size=20, augmented=True)
    with pytest.raises(data.DataError, match=message.format("valid", valid[7], valid[7])):
        take(make_stream(bad=[valid[7]]), "valid", 1, augmented=False)


def test_records_that_cannot_be_read_are_replaced_in_training_left_out_elsewhere_and_counted():
    train, valid = members()
    bad = [3, *train[:1], *train[10:12], valid[7]]
    bad = [int(number) for number in bad if number not in (0, 1, 2, 4, 5, 6)]
    found, whole = make_stream(bad=bad, skip_bad=True), make_stream()
    seen, expected = (colours(take(s, "train", 3)) for s in (found, whole))
    following = dict(zip(train, [*train[1:], train[0]], strict=True))
    for _ in range(3):
        expected = [following[number] if number in bad else number for number in expected]
    np.testing.assert_array_equal(seen, expected)
    assert len(colours(take(found, "valid", 1, augmented=False))) == 20
    assert sorted(colours(list(found.eval_batches("valid", batch_size=3)))[:39]) == sorted(set(valid) - {*bad})
    batches = list(found.eval_batches("test", batch_size=7))
    assert batches[0]["label"].tolist() == [0, 1, 2, -1, 4, 5, 6]
    count = sum(number in set(train) for number in bad)
    assert found.reading["skipped_records"] == {"train": count, "valid": len(set(bad) & set(valid)), "test": 1}
    assert found.reading["decoder"].startswith("Pillow ")
    with pytest.raises(data.DataError, match="train: 32 records in a row cannot be read, as 0"):
        take(make_stream(bad=range(100), skip_bad=True), "train", 1)


def test_a_batch_larger_than_the_split_is_refused():
    with pytest.raises(data.DataError, match="a batch of 41 is larger than the valid split, which has 40"):
        make_stream().train_batches("valid", batch_size=41, first_step=0, augmented=False)
