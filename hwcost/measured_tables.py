"""Lookup tables of layer costs on a device, measured or published (APQ, §3.3).

Three forms are read:

* **our own**: a JSON document with `device`, `metric`, `unit` and `entries`, each with a layer's `key`, `weight_bits`,
  `activation_bits`, `value` and, if measured, `repetitions` and `spread`; or the same as CSV, one line per entry;
* **APQ's** JSON: `"(in, out, size, kernel, stride, padding, groups)-W8A8": {"latency": ms, "energy": mJ}`;
* **HAQ's** NumPy array `[layers, 8, 8]`: cost of each layer, in order of execution, at 1 … 8 bits of weights and
  activations. Pickled data are refused.

The key of a layer describes its shape, so that layers of equal shape share an entry, also across networks:
`conv in=64 out=128 size=28x28->14x14 kernel=3x3 stride=2x2 groups=1`. An entry is the cost of one run of the layer: one
that runs several times for an example, as a recurrent cell, costs that many times as much.
"""

import csv
import dataclasses
import difflib
import hashlib
import json
import math
import pathlib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from aqt_like.formats import LayerFormat
from hwcost.cost_model import CostModel, needed_width
from hwcost.table_fields import LutError, read_cost, read_number, read_object, read_rows, read_whole
from hwcost.workload import LayerSpec

Bits = tuple[int, int]
_MOST_BITS = 64
_EXAMPLE = "conv in=64 out=128 size=28x28->14x14 kernel=3x3 stride=2x2 groups=1"
_HEAD = ("device", "metric", "unit", "batch", "date", "sha256")  # of a table as a whole


@dataclasses.dataclass(frozen=True)
class Entry:
    """A cost; if measured, also the number of repetitions and the interquartile range, else 0 and NaN."""

    value: float
    repetitions: int = 0
    spread: float = float("nan")


@dataclasses.dataclass(frozen=True)
class Lut:
    """A lookup table of costs by layer key and bits.

    Attributes:
      device: name of the device.
      metric: the measured quantity, as in `latency`.
      unit: unit of the values.
      entries: costs by layer key and by bits of weights and activations.
      batch: batch size.
      date: date of the measurement, or empty.
    """

    device: str
    metric: str
    unit: str
    entries: dict[tuple[str, Bits], Entry]
    batch: int = 1
    date: str = ""

    def value(self, key: str, bits: Bits) -> float:
        """The cost of a layer key at bits of weights and activations.

        Raises:
          LutError: the table lacks the setting; the message names the nearest ones.
        """
        if (key, bits) in self.entries:
            return self.entries[key, bits].value
        settings = sorted(f"W{w}A{a}" for k, (w, a) in self.entries if k == key)
        if settings:
            raise LutError(f"{self.device}: {key!r} has no W{bits[0]}A{bits[1]}, but {', '.join(settings)}")
        near = difflib.get_close_matches(key, self._keys(), n=3, cutoff=0.0)
        raise LutError(f"{self.device}: no setting {key!r}; nearest are {', '.join(map(repr, near))}")

    def most_similar(self, layer: LayerSpec) -> tuple[str, float]:
        """The key of the most similar layer in the table, and the factor from its cost to that of `layer`.

        Candidates have the same kind, kernel, stride, dilation and, if grouped, channels per group; the nearest of them
        in channels and size is chosen. Costs are assumed proportional to MACs.

        Raises:
          LutError: the table has no candidate.
        """
        target = _parse_key(layer_key(layer))
        candidates = [(key, parsed) for key in self._keys() if (parsed := _parse_key(key)).family == target.family]
        if not candidates:
            raise LutError(f"{self.device}: nothing to interpolate {layer_key(layer)!r} from: no layer of its kind")
        key, nearest = min(candidates, key=lambda pair: np.abs(np.log(pair[1].sizes) - np.log(target.sizes)).sum())
        return key, float(np.prod(target.sizes) / np.prod(nearest.sizes))

    def _keys(self) -> list[str]:
        return list(dict.fromkeys(key for key, _ in self.entries))

    def cost_model(self, *, interpolated: bool = False) -> CostModel:
        """The cost model of this table. Bits that it lacks cost as the next wider ones; floats as at least 16 bits.

        With `interpolated`, layers that the table lacks are estimated from the most similar one; otherwise the model
        raises a LutError for them.
        """
        bits_by_key: dict[str, list[Bits]] = {key: [] for key in self._keys()}
        for key, bits in self.entries:
            bits_by_key[key].append(bits)

        def estimates(layer: LayerSpec) -> bool:
            return interpolated and layer_key(layer) not in bits_by_key

        def layer_costs(layer: LayerSpec, formats: Sequence[LayerFormat]) -> np.ndarray:
            key, factor = self.most_similar(layer) if estimates(layer) else (layer_key(layer), 1.0)

            def value(fmt: LayerFormat) -> float:
                needed = (needed_width(fmt.weights), needed_width(fmt.inputs))
                wide_enough = [
                    bits for bits in bits_by_key.get(key, ()) if bits[0] >= needed[0] and bits[1] >= needed[1]
                ]
                try:
                    return factor * self.value(
                        key, min(wide_enough, key=lambda bits: (sum(bits), bits), default=needed)
                    )
                except LutError as error:
                    raise LutError(f"{layer.path}: {error}") from error

            return layer.runs * np.asarray([value(fmt) for fmt in formats], np.float64)

        return CostModel(layer_costs, self.unit, estimates=estimates)


class _ParsedKey(NamedTuple):
    """A parsed key: the `family` of similar layers, and the `sizes` whose product is proportional to the MACs."""

    family: tuple[str, ...]
    sizes: tuple[int, ...]


_SIZES = r"\d+(?:x\d+)*"
_OF_FAMILY = ("kernel", "stride", "dilation", "input_dilation")
_KEY = re.compile(rf"\w+ in=\d+ out=\d+ size={_SIZES}->{_SIZES}(?: groups=\d+| (?:{'|'.join(_OF_FAMILY)})={_SIZES})*")


def _parse_key(key: str, told: str = "") -> _ParsedKey:
    """Parses what `layer_key` makes.

    Raises:
      LutError: no layer has this key; the message begins with `told`.
    """
    numbers = [int(digits) for digits in re.findall(r"\d+", key)] if _KEY.fullmatch(key) and len(key) < 1000 else [0]
    kind, *fields = key.split(" ")
    values = dict(field.split("=", 1) for field in fields) if min(numbers) else {"in": "0"}
    ins, outs, groups = (int(values.get(name, 1)) for name in ("in", "out", "groups"))
    if not ins or ins % groups or outs % groups or max(numbers) >= 2**31 or len(values) < len(fields):
        raise LutError(f"{told}no layer has the key {key!r}: expected one as {_EXAMPLE!r}")
    pixels = math.prod(int(n) for n in values["size"].rpartition("->")[2].split("x"))
    group = str(ins // groups) if groups > 1 else "all"
    family = (kind, group, *(values.get(name, "") for name in _OF_FAMILY))
    return _ParsedKey(family, (outs, pixels) if groups > 1 else (ins, outs, pixels))


def layer_key(layer: LayerSpec) -> str:
    """The key of a layer: its kind and shape as text, the same for layers that compute the same."""

    def sizes(values: Sequence[int]) -> str:
        return "x".join(map(str, values)) or "1"

    size = f"{sizes(layer.input_size)}->{sizes(layer.output_size)}"
    text = f"{layer.kind} in={layer.in_channels} out={layer.out_channels} size={size}"
    if layer.kernel:
        text += f" kernel={sizes(layer.kernel)} stride={sizes(layer.stride)}"
    if layer.kernel or layer.groups > 1:
        text += f" groups={layer.groups}"
    for name, dilation in (("dilation", layer.dilation), ("input_dilation", layer.input_dilation)):
        if max(dilation, default=1) > 1:
            text += f" {name}={sizes(dilation)}"
    return text


def read(path: pathlib.Path) -> Lut:
    """Reads a table in our own form, JSON or CSV, with or without a checksum.

    Raises:
      LutError: the file cannot be read or is not as it was written, a field is missing or invalid, or a setting occurs
        twice.
    """
    try:
        head, rows = _head_and_rows(path)
        lut, checksum = _table(path, head, rows), head.get("sha256")
    except KeyError as error:
        expected = "device, metric, unit, and in each entry key, weight_bits, activation_bits, value"
        raise LutError(f"{path}: no field {error}: expected {expected}") from error
    if checksum and checksum != _digest(lut):
        raise LutError(
            f"{path} is not as it was written: its checksum differs. If the change is meant, remove sha256 from it"
        )
    return lut


def _head_and_rows(path: pathlib.Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    if path.suffix != ".csv":
        document = read_object(path)
        rows = document["entries"]
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise LutError(f"cannot read the table {path}: expected entries=[…], a list of objects")
        return document, rows
    rows = read_rows(path)
    if len(heads := {tuple(row.get(name) for name in _HEAD) for row in rows}) > 1:
        raise LutError(f"{path} mixes {len(heads)} devices, metrics or units: one table is for one of each")
    return rows[0] if rows else {}, rows


def _table(path: pathlib.Path, head: dict[str, Any], rows: list[dict[str, Any]]) -> Lut:
    if not rows:
        raise LutError(f"{path} has no entries")
    entries: dict[tuple[str, Bits], Entry] = {}
    for row in rows:
        key = str(row["key"])
        told = f"{path}: {key!r} "
        weights, inputs = (
            read_whole(f"{told}has {name}=", row[name], lowest=1, highest=_MOST_BITS)
            for name in ("weight_bits", "activation_bits")
        )
        if (key, (weights, inputs)) in entries:
            raise LutError(f"{told}at W{weights}A{inputs} is there twice")
        repetitions = read_whole(f"{told}has repetitions=", row.get("repetitions") or 0, lowest=0)
        spread = row.get("spread")
        spread = math.nan if spread in (None, "") else read_number(f"{told}has spread=", spread)
        entries[key, (weights, inputs)] = Entry(read_cost(f"{told}costs ", row["value"]), repetitions, spread)
    for key, _ in entries:
        _parse_key(key, f"{path}: ")
    device, metric, unit, date = head["device"], head["metric"], head["unit"], head.get("date") or ""
    for name, text in (("device", device), ("metric", metric), ("unit", unit), ("date", date)):
        if not isinstance(text, str) or not (text or name == "date"):
            raise LutError(f"{path}: {name}={text!r}: expected a text")
    batch = read_whole(f"{path}: batch=", head.get("batch") or 1, lowest=1)
    return Lut(device, metric, unit, entries, batch=batch, date=date)


def _digest(lut: Lut) -> str:
    """The checksum of a table: SHA-256 of what it says, in whatever form it is written."""
    head = [lut.device, lut.metric, lut.unit, lut.batch, lut.date]
    return hashlib.sha256(json.dumps([head, _rows(lut)]).encode()).hexdigest()


def _rows(lut: Lut) -> list[dict[str, Any]]:
    """The entries of a table as its file holds them."""
    return [
        {
            "key": key,
            "weight_bits": weights,
            "activation_bits": activations,
            "value": float(entry.value),
            "repetitions": entry.repetitions,
            "spread": None if math.isnan(entry.spread) else float(entry.spread),
        }
        for (key, (weights, activations)), entry in lut.entries.items()
    ]


def write(path: pathlib.Path, lut: Lut) -> None:
    """Writes a table in our own form, CSV if the file name ends in `.csv`, else JSON, atomically and with a checksum.

    Raises:
      LutError: it has no entries, or a cost that is none.
    """
    if not lut.entries:
        raise LutError(f"{path} would have no entries")
    values = (lut.device, lut.metric, lut.unit, lut.batch, lut.date, _digest(lut))
    head = dict(zip(_HEAD, values, strict=True))
    rows = _rows(lut)
    for row in rows:
        read_cost(f"{path}: {row['key']!r} costs ", row["value"])
    temporary = path.with_suffix(path.suffix + ".tmp")
    if path.suffix == ".csv":
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, [*head, *rows[0]])
            writer.writeheader()
            writer.writerows(head | row for row in rows)
    else:
        temporary.write_text(json.dumps(head | {"entries": rows}, indent=1) + "\n")
    temporary.rename(path)


APQ_KEY = re.compile(r"\(" + ", ".join([r"(\d{1,9})"] * 7) + r"\)-W(\d{1,3})A(\d{1,3})")


def parse_apq_key(key: str) -> tuple[LayerSpec, Bits]:
    """The layer and the bits of a key of APQ; `head` and `tail` are the first and last convolution of MobileNetV2.

    Raises:
      LutError: the key cannot be parsed.
    """
    aliases = {"head": "(3, 32, 224, 3, 2, 1, 1)-W8A8", "tail": "(320, 1280, 7, 1, 1, 0, 1)-W8A8"}
    match = APQ_KEY.fullmatch(aliases.get(key, key)) if isinstance(key, str) else None
    if not match:
        raise LutError(f"key {key!r}: expected (in, out, size, kernel, stride, padding, groups)-W8A8, head or tail")
    ins, outs, size, kernel, stride, padding, groups, weight_bits, activation_bits = map(int, match.groups())
    sizes = (ins, outs, size, kernel, stride, groups)
    if not min(sizes) or ins % groups or outs % groups or size + 2 * padding < kernel:
        raise LutError(f"key {key!r}: no convolution has these sizes")
    if not (0 < weight_bits <= _MOST_BITS and 0 < activation_bits <= _MOST_BITS):
        raise LutError(f"key {key!r}: expected 1 to {_MOST_BITS} bits")
    side = (size + 2 * padding - kernel) // stride + 1
    layer = LayerSpec.square_convolution(
        key, ins, outs, size=size, output_size=side, kernel=kernel, stride=stride, groups=groups
    )
    return layer, (weight_bits, activation_bits)


def read_apq(path: pathlib.Path, metric: str) -> Lut:
    """Reads `latency` (ms) or `energy` (mJ) from a table in APQ's form.

    Raises:
      LutError: the file cannot be read, a key cannot be parsed, or an entry lacks the metric.
    """
    units = {"latency": "ms", "energy": "mJ"}
    if metric not in units:
        raise LutError(f"metric {metric!r}: APQ's tables have {' and '.join(units)}")
    entries: dict[tuple[str, Bits], Entry] = {}
    try:
        for key, values in read_object(path).items():
            layer, bits = parse_apq_key(key)
            if not isinstance(values, dict) or metric not in values:
                raise LutError(f"{key!r} has no {metric!r}")
            _add(path, entries, layer, bits, read_cost(f"{key!r} costs ", values[metric]))
    except LutError as error:
        raise LutError(f"cannot read {path} as a table of APQ's: {error}") from error
    if not entries:
        raise LutError(f"{path} has no entries")
    return Lut("BitFusion (APQ)", metric, units[metric], entries)


def read_haq(path: pathlib.Path, layers: Sequence[LayerSpec], *, unit: str = "cycles", batch: int = 16) -> Lut:
    """Reads a table in HAQ's form for `layers`, given in order of execution.

    Raises:
      LutError: the file is no NumPy array or a pickled one, has another number of layers, or gives layers of one shape
        different costs.
    """
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise LutError(f"cannot read {path} as a NumPy array: {error}") from error
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "iuf":
        raise LutError(f"cannot read {path} as a NumPy array: expected one of numbers")
    if values.ndim != 3 or len(values) != len(layers):
        raise LutError(f"{path} has shape {values.shape}: expected [{len(layers)}, bits, bits], one row for each layer")
    entries: dict[tuple[str, Bits], Entry] = {}
    for layer, costs in zip(layers, values, strict=True):
        for (w, a), value in np.ndenumerate(costs):
            told = f"{path}: {layer.path} at W{w + 1}A{a + 1} costs "
            _add(path, entries, layer, (w + 1, a + 1), read_cost(told, float(value)) / layer.runs)
    return Lut("HAQ's accelerator", "latency", unit, entries, batch=batch)


def _add(
    path: pathlib.Path, entries: dict[tuple[str, Bits], Entry], layer: LayerSpec, bits: Bits, one_run: float
) -> None:
    """Adds the cost of one run of a layer; layers of one shape share an entry, and have to cost the same."""
    setting = (layer_key(layer), bits)
    if setting in entries and entries[setting].value != one_run:
        raise LutError(f"{path}: layers of one shape ({setting[0]}) cost differently: they cannot share a line")
    entries[setting] = Entry(one_run)
