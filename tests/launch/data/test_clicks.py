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
        ({"mixup": 0.2}, "data.mixup=0.2: data.name='click_log' does not use it"),
        ({"bucket": 9}, "data.bucket=9: data.name='click_log' does not use it, expected no such key"),
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
        ("no label", ["", *line(1)[1:]], "line 2 has no label: expected 0 or 1"),
        ("nan label", ["nan", *line(1)[1:]], "line 2 has no label"),
        ("infinite", [*line(1)[:4], "-inf", *line(1)[5:]], "line 2 has I4=-inf: expected a finite number"),
        ("too large", [*line(1)[:4], "1e400", *line(1)[5:]], "line 2 has I4=inf"),
        ("empty", [""], "3 lines, of which 2 were read: expected no empty lines"),
    ):
        source = data.find(settings(write(tmp_path / f"{name}.txt", [line(0), bad, line(2)])))
        with pytest.raises(data.DataError, match=message):
            source.read()


@pytest.mark.parametrize(
    ("part", "place"), [(slice(0, 6), "first 6"), (slice(6, 8), "last 2"), (slice(0, 8), "first 6")]
)
def test_labels_of_one_class_are_refused(tmp_path, part, place):
    lines = [line(number) for number in range(8)]
    for fields in lines[part]:
        fields[0] = "0"
    source = data.find(settings(write(tmp_path / "one.txt", lines)))
    with pytest.raises(data.DataError, match=f"the labels of the {place} lines are all 0: expected 0 and 1"):
        source.read()


def test_quotes_mark_fields_between_commas_only(tmp_path):
    lines = [line(number) for number in range(8)]
    expected = data.find(settings(write(tmp_path / "plain.csv", lines, ","))).read()[0].inputs
    quoted = [[f'"{field}"' for field in fields] for fields in [["Label", *NUMBERS, *CATEGORIES], *lines]]
    found = data.find(settings(write(tmp_path / "quoted.csv", quoted, ","))).read()[0].inputs
    np.testing.assert_array_equal(found, expected)
    lines[1][20], lines[2][20] = '"a', 'b"'  # between commas, lines 2 and 3 would be one of 40 fields
    pool, _ = data.find(settings(write(tmp_path / "log.txt", lines))).read()
    np.testing.assert_allclose(pool.inputs, expected_inputs([fields[1:] for fields in lines[:6]]), rtol=1e-6)
    with pytest.raises(data.DataError, match=r"8 lines, of which 7 were read|Expected 40 columns"):
        data.find(settings(write(tmp_path / "log.csv", lines, ","))).read()


def test_the_header_may_follow_a_byte_order_mark(tmp_path):
    path = write(tmp_path / "log.csv", [["Label", *NUMBERS, *CATEGORIES], *[line(n) for n in range(8)]], ",")
    expected = data.find(settings(path)).read()[0].inputs
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    np.testing.assert_array_equal(data.find(settings(path)).read()[0].inputs, expected)
    path.write_text(path.read_text().lower())
    with pytest.raises(data.DataError, match=r"its header is .*label,i1,i2.*: expected Label, I1"):
        data.find(settings(path))


def test_first_lines_that_say_nothing_or_something_twice_are_refused(tmp_path):
    path = write(
        tmp_path / "log.csv", [["Label", *NUMBERS, *CATEGORIES, "I1"], *[[*line(n), "9"] for n in range(8)]], ","
    )
    with pytest.raises(data.DataError, match="its header has I1 twice"):
        data.find(settings(path))
    path.write_bytes(b"1\r2,\x003\n" * 9)
    with pytest.raises(data.DataError, match=r"log\.csv: its first line"):
        data.find(settings(path))


def test_what_was_read_is_told_field_by_field(tmp_path):
    lines = [line(number) for number in range(40)]
    lines[3][4] = "nan"  # missing, as an empty field is
    for fields in lines:
        fields[13] = ""
    missing = sum(not fields[4] or fields[4] == "nan" for fields in lines) / 40
    remark = data.find(settings(write(tmp_path / "log.txt", lines))).open(valid_examples=10, seed=0).remark
    assert remark.startswith("log.txt: 40 lines, 50.00% with label 1; missing I1 ")
    assert f", I4 {missing:.1%}, " in remark and ", I13 100.0%; buckets in use C1 " in remark
    assert remark.count("C") == 26
