"""Click logs in Criteo's format (FLIQS, A.13): lines of a label, 13 numbers and 26 categories."""

import csv
import dataclasses
import pathlib
import zlib
from collections.abc import Sequence

import jax
import numpy as np
import pyarrow
import pyarrow.csv
from ml_collections import ConfigDict

from fliqs_jax.models.recommender import CATEGORIES, NUMBERS
from launch.data.arrays import InMemory, MakeBatch, Split, in_memory
from launch.data.contract import NORMALIZED, Batch, DataError, Normalization

_NUMBER_FIELDS, _CATEGORY_FIELDS = (
    [f"{kind}{i + 1}" for i in range(n)] for kind, n in (("I", NUMBERS), ("C", CATEGORIES))
)
COLUMNS = ("Label", *_NUMBER_FIELDS, *_CATEGORY_FIELDS)
MOST_BUCKETS = 2**24  # Bucket numbers are stored as float32, which is exact up to here.


class ClickLog:
    """Click log in one file, in chronological order; its last lines are the test split.

    Inputs are float32[39]. The 13 numbers n are sign(n) · log(1 + |n|), normalised by mean and standard deviation of
    the training examples; missing ones are 0. The 26 categories are hash buckets; a missing category is a category too.
    Labels are 0 and 1.

    Fields are separated by tabs, or by commas and then may be quoted. A file has either the 40 fields in this order,
    like Kaggle's `train.txt`, or a header with `Label`, `I1` … `I13` and `C1` … `C26`; other columns are ignored.
    """

    example = jax.ShapeDtypeStruct((NUMBERS + CATEGORIES,), np.dtype(np.float32))
    classes = 1
    settings = ("file", "buckets", "test_fraction")  # of `config.data`, that it uses

    def __init__(self, config: ConfigDict) -> None:
        self._path, self._buckets = pathlib.Path(config.file or ""), config.buckets
        if not 1 <= self._buckets <= MOST_BUCKETS:
            raise DataError(f"data.buckets={self._buckets}: expected 1…{MOST_BUCKETS}")
        if not 0 < config.test_fraction < 1:
            raise DataError(f"data.test_fraction={config.test_fraction}: expected a share between 0 and 1")
        if not self._path.is_file():
            raise DataError(f"data.file={config.file!r}: no such file; expected a click log, as Criteo's train.txt")
        with self._path.open("rb") as file:
            first = file.readline().decode("utf-8-sig", errors="replace").rstrip("\r\n")
            lines, ending = 1, b"\n"
            while block := file.read(1 << 20):
                lines, ending = lines + block.count(b"\n"), block[-1:]
            lines += ending != b"\n"
        self._delimiter = "\t" if "\t" in first else ","
        try:
            fields = next(csv.reader([first], delimiter=self._delimiter), [])
        except csv.Error as error:
            raise DataError(f"{self._path}: its first line cannot be read as text with fields: {error}") from error
        self._header = "Label" in fields
        if not self._header and "label" in map(str.lower, fields):
            raise DataError(f"{self._path}: its header is {first[:40]!r} …: expected Label, I1 … I13, C1 … C26")
        if missing := [name for name in COLUMNS if name not in fields] if self._header else []:
            raise DataError(f"{self._path}: its header lacks {', '.join(missing)}")
        if repeated := [name for name in COLUMNS if fields.count(name) > 1]:
            raise DataError(f"{self._path}: its header has {', '.join(repeated)} twice")
        if not self._header and len(fields) != len(COLUMNS):
            raise DataError(
                f"{self._path}: its first line has {len(fields)} fields: expected {len(COLUMNS)} (a label, {NUMBERS} "
                f"numbers, {CATEGORIES} categories), or a header that names them"
            )
        self._examples = lines - self._header
        self._test_examples = max(round(config.test_fraction * self._examples), 1)
        self.train_examples = self._examples - self._test_examples

    def open(self, *, valid_examples: int, seed: int) -> InMemory:
        """See `Source.open`; the data set has a `remark` on what was read."""
        pool, test = self.read()
        dataset = in_memory(pool, test, _standardized, valid_examples=valid_examples, seed=seed)
        return dataclasses.replace(dataset, remark=self._remark(pool, test))

    def read(self) -> tuple[Split, Split]:
        """Training and validation examples, and the test split; missing numbers are NaN.

        Raises:
          DataError: a line or a field cannot be read, a number is infinite, a label is missing, or all labels of a
            split are equal; the message has the line.
        """
        table = self._table()
        if len(table) != self._examples:
            raise DataError(
                f"{self._path}: {self._examples:,} lines, of which {len(table):,} were read: expected no empty lines, "
                "and no quotes that hold the end of a line"
            )
        labels = table["Label"]
        if (empty := labels.is_null().to_numpy()).any():
            raise DataError(f"{self._line(empty)} has no label: expected 0 or 1")
        labels = labels.to_numpy().astype(np.int32)
        if (wrong := (labels != 0) & (labels != 1)).any():
            found = ", ".join(map(str, np.unique(labels[wrong])))
            raise DataError(f"{self._line(wrong)} is the first with one of the labels {found}: expected 0 and 1")
        inputs = np.empty((len(labels), NUMBERS + CATEGORIES), np.float32)
        for i, name in enumerate(COLUMNS[1:]):
            column = table[name]
            if i < NUMBERS:
                numbers = column.to_numpy()
                if (wrong := np.isinf(numbers)).any():
                    raise DataError(f"{self._line(wrong)} has {name}={numbers[wrong][0]}: expected a finite number")
                inputs[:, i] = np.sign(numbers) * np.log1p(np.abs(numbers))
            else:
                coded = column.combine_chunks().dictionary_encode()
                buckets = _buckets(name, coded.dictionary.to_pylist(), self._buckets)
                inputs[:, i] = buckets[coded.indices.to_numpy()]
        train = len(labels) - self._test_examples
        splits = Split(inputs[:train], labels[:train]), Split(inputs[train:], labels[train:])
        for place, split in zip(("first", "last"), splits, strict=True):
            if len(split) and split.labels.min() == split.labels.max():
                raise DataError(
                    f"{self._path}: the labels of the {place} {len(split):,} lines are all {split.labels[0]}: expected "
                    "0 and 1"
                )
        return splits

    def _table(self) -> pyarrow.Table:
        options = pyarrow.csv
        try:
            return options.read_csv(
                self._path,
                read_options=options.ReadOptions(column_names=None if self._header else COLUMNS),
                # Between tabs, a quote is a character like any other.
                parse_options=options.ParseOptions(
                    delimiter=self._delimiter, quote_char='"' if self._delimiter == "," else False
                ),
                convert_options=options.ConvertOptions(
                    column_types=_column_types(),
                    include_columns=COLUMNS,
                    strings_can_be_null=False,
                ),
            )
        except pyarrow.ArrowInvalid as error:
            raise DataError(f"{self._path}: {error}") from error

    def _line(self, wrong: np.ndarray) -> str:
        """The first line that is wrong, bool[N], as people count lines."""
        return f"{self._path}: line {int(np.argmax(wrong)) + 1 + self._header}"

    def _remark(self, *splits: Split) -> str:
        """A line on what was read, field by field."""
        inputs, labels = (np.concatenate([getattr(split, name) for split in splits]) for name in ("inputs", "labels"))
        missing = np.isnan(inputs[:, :NUMBERS]).mean(axis=0)
        used = [len(np.unique(column)) for column in inputs[:, NUMBERS:].T]
        told = [
            f"{len(labels):,} lines, {labels.mean():.2%} with label 1",
            "missing " + ", ".join(f"{name} {share:.1%}" for name, share in zip(_NUMBER_FIELDS, missing, strict=True)),
            "buckets in use " + ", ".join(f"{n} {count:,}" for n, count in zip(_CATEGORY_FIELDS, used, strict=True)),
        ]
        return f"{self._path.name}: {'; '.join(told)}"


def _column_types() -> dict[str, pyarrow.DataType]:
    label, numbers, categories = [pyarrow.int8()], [pyarrow.float64()] * NUMBERS, [pyarrow.string()] * CATEGORIES
    return dict(zip(COLUMNS, label + numbers + categories, strict=True))


def _buckets(column: str, categories: Sequence[str], buckets: int) -> np.ndarray:
    """Bucket of each category, by a hash that depends on the column and is the same on all machines: float32[N]."""
    return np.asarray([zlib.crc32(f"{column}:{category}".encode()) % buckets for category in categories], np.float32)


@dataclasses.dataclass(frozen=True)
class _Standardized:
    """Makes batches whose numbers are normalised; see `arrays.MakeBatch`."""

    mean: np.ndarray
    deviation: np.ndarray

    @property
    def normalization(self) -> Normalization:
        """See `arrays.InMemory.normalization`."""
        x = "sign(n) * log(1 + abs(n)) of the numbers n; missing ones are 0 in the end"
        return {"formula": NORMALIZED, "x": x, "mean": self.mean.tolist(), "deviation": self.deviation.tolist()}

    def __call__(self, inputs: np.ndarray, labels: np.ndarray, rng: np.random.Generator | None) -> Batch:
        del rng
        scaled = np.nan_to_num((inputs[:, :NUMBERS] - self.mean) / self.deviation)
        return {"input": np.concatenate([scaled, inputs[:, NUMBERS:]], axis=1), "label": labels}


def _standardized(train: Split) -> MakeBatch:
    """Makes batches whose numbers are normalised by mean and standard deviation of the training examples."""
    numbers = train.inputs[:, :NUMBERS].astype(np.float64)
    known = ~np.isnan(numbers)
    count = np.maximum(known.sum(0), 1)
    mean = np.where(known, numbers, 0).sum(0) / count
    deviation = np.sqrt(np.where(known, (numbers - mean) ** 2, 0).sum(0) / count)
    return _Standardized(mean.astype(np.float32), np.where(deviation > 0, deviation, 1).astype(np.float32))
