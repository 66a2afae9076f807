import csv
import math
import zlib

import numpy as np
import pytest
from ml_collections import ConfigDict

from launch import data

SETTINGS = {"name": "click_log", "buckets": 50, "test_fraction": 0.25}
NUMBERS, CATEGORIES = [f"I{i + 1}" for i in range(13)], [f"C{i + 1}" for i in range(26)]


def settings(path, **changes):
    return ConfigDict(SETTINGS | {"file": str(path), **changes})


def line(number):
    """A line of Kaggle's form; every third number and category is missing."""
    numbers = ["" if (number + i) % 3 == 0 else str(number * i - 2) for i in range(13)]
    categories = ["" if (number + i) % 3 == 1 else f"{(number * 7 + i) % 5:08x}" for i in range(26)]
    return [str(number % 2), *numbers, *categories]


def write(path, lines, delimiter="\t", ending="\n"):
    path.write_text("\n".join(delimiter.join(fields) for fields in lines) + ending)
    return path


def expected_inputs(rows):
    """The 39 inputs of rows of text, before standardisation, one value at a time."""
    inputs = []
    for row in rows:
        values = []
        for text in row[:13]:
            n = float(text or "nan")
            values.append(math.copysign(math.log(1 + abs(n)), n) if not math.isnan(n) else math.nan)
        for name, text in zip(CATEGORIES, row[13:], strict=True):
            values.append(zlib.crc32(f"{name}:{text}".encode()) % 50)
        inputs.append(values)
    return np.asarray(inputs, np.float32)


@pytest.mark.parametrize("ending", ["\n", ""])
def test_kaggles_form_is_read(tmp_path, ending):
    lines = [line(number) for number in range(40)]
    source = data.find(settings(write(tmp_path / "train.txt", lines, ending=ending)))
    assert (source.example.shape, source.classes, source.train_examples) == ((39,), 1, 30)
    pool, test = source.read()
    np.testing.assert_allclose(pool.inputs, expected_inputs([fields[1:] for fields in lines[:30]]), rtol=1e-6)
    np.testing.assert_allclose(test.inputs, expected_inputs([fields[1:] for fields in lines[30:]]), rtol=1e-6)
    np.testing.assert_array_equal(pool.labels, [number % 2 for number in range(30)])


def test_numbers_are_standardised_by_the_training_examples_and_missing_ones_are_0(tmp_path):
    source = data.find(settings(write(tmp_path / "train.txt", [line(number) for number in range(40)])))
    dataset = source.open(valid_examples=10, seed=0)
    batches = {split: next(dataset.eval_batches(split, batch_size=10)) for split in ("train", "valid", "test")}
    train = np.concatenate([b["input"] for b in dataset.eval_batches("train", batch_size=10)])[:, :13]
    raw = dataset.splits["train"].inputs[:, :13]
    assert (train[np.isnan(raw)] == 0).all()
    for column in range(1, 13):
        known = train[~np.isnan(raw[:, column]), column]
        assert abs(known.mean()) < 1e-5 and abs(known.std() - 1) < 1e-4
    for batch in batches.values():
        assert batch["input"].dtype == np.float32 and np.isfinite(batch["input"]).all()
        assert ((batch["input"][:, 13:] >= 0) & (batch["input"][:, 13:] < 50)).all()


def test_criteos_sample_is_read(criteo_file):
    source = data.find(settings(criteo_file))
    pool, test = source.read()
    with criteo_file.open() as file:
        rows = list(csv.DictReader(file))
    assert (source.train_examples, len(pool), len(test)) == (len(rows) - 500, len(rows) - 500, 500)
    texts = [[row[name] for name in NUMBERS + CATEGORIES] for row in rows]
    np.testing.assert_allclose(np.concatenate([pool.inputs, test.inputs]), expected_inputs(texts), rtol=1e-6)
    np.testing.assert_array_equal(np.concatenate([pool.labels, test.labels]), [int(row["Label"]) for row in rows])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"buckets": 0}, r"data.buckets=0: expected 1…16777216"),
        ({"test_fraction": 1.0}, "data.test_fraction=1.0: expected a share between 0 and 1"),
        ({"file": "nowhere.txt"}, "data.file='nowhere.txt': no such file"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path, changes, message):
    file = write(tmp_path / "train.txt", [line(0)])
    with pytest.raises(data.DataError, match=message):
        data.find(settings(file, **changes))


def test_files_that_are_no_click_logs_are_refused(tmp_path):
    with pytest.raises(data.DataError, match=r"its first line has 39 fields: expected 40 \(a label, 13 numbers"):
        data.find(settings(write(tmp_path / "short.txt", [line(0)[:-1]])))
    with pytest.raises(data.DataError, match="its header lacks I13"):
        data.find(settings(write(tmp_path / "header.csv", [["Label", *NUMBERS[:-1], *CATEGORIES]], ",")))
    for name, bad, message in (
        ("label", ["2", *line(1)[1:]], "labels 2: expected 0 and 1"),
        ("number", ["0", "many", *line(1)[2:]], "CSV column #1: .*many"),
        ("fields", line(1)[:-1], "Expected 40 columns, got 39"),
    ):
        source = data.find(settings(write(tmp_path / f"{name}.txt", [line(0), bad, line(2)])))
        with pytest.raises(data.DataError, match=message):
            source.read()
