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
import io
import json
import math
import pathlib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from aqt_like.formats import LayerFormat
from hwcost.cost_model import CostModel, needed_width
from hwcost.workload import LayerSpec

Bits = tuple[int, int]


class LutError(ValueError):
    """Raised for a table that cannot be read or lacks a setting; the message names the file or the nearest settings."""


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


def _parse_key(key: str) -> _ParsedKey:
    kind, *fields = key.split(" ")
    values = dict(field.split("=", 1) for field in fields)
    ins, outs, groups = (int(values.get(name, 1)) for name in ("in", "out", "groups"))
    pixels = math.prod(int(n) for n in values["size"].rpartition("->")[2].split("x"))
    group = str(ins // groups) if groups > 1 else "all"
    family = (kind, group, *(values.get(name, "") for name in ("kernel", "stride", "dilation", "input_dilation")))
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
    """Reads a table in our own form, JSON or CSV.

    Raises:
      LutError: the file cannot be read, a field is missing or invalid, or a setting occurs twice.
    """
    try:
        return _table(path, *_head_and_rows(path))
    except LutError:
        raise
    except KeyError as error:
        expected = "device, metric, unit, and in each entry key, weight_bits, activation_bits, value"
        raise LutError(f"{path}: no field {error}: expected {expected}") from error
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise LutError(f"cannot read the table {path}: {error}") from error


def _head_and_rows(path: pathlib.Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    text = path.read_text()
    if path.suffix != ".csv":
        document = json.loads(text)
        return document, document["entries"]
    rows = list(csv.DictReader(io.StringIO(text)))
    if len(devices := {(row["device"], row["metric"], row["unit"]) for row in rows}) > 1:
        raise LutError(f"{path} mixes {len(devices)} devices, metrics or units: one table is for one of each")
    return rows[0] if rows else {}, rows


def _table(path: pathlib.Path, head: dict[str, Any], rows: list[dict[str, Any]]) -> Lut:
    if not rows:
        raise LutError(f"{path} has no entries")
    entries: dict[tuple[str, Bits], Entry] = {}
    for row in rows:
        key, bits = str(row["key"]), (int(row["weight_bits"]), int(row["activation_bits"]))
        if (key, bits) in entries:
            raise LutError(f"{path}: {key!r} at W{bits[0]}A{bits[1]} is there twice")
        entry = Entry(float(row["value"]), int(row.get("repetitions") or 0), float(row.get("spread") or "nan"))
        if not np.isfinite(entry.value) or entry.value < 0:
            raise LutError(f"{path}: {key!r} costs {entry.value}: expected a number from 0")
        entries[key, bits] = entry
    return Lut(
        str(head["device"]),
        str(head["metric"]),
        str(head["unit"]),
        entries,
        batch=int(head.get("batch") or 1),
        date=str(head.get("date") or ""),
    )


def write(path: pathlib.Path, lut: Lut) -> None:
    """Writes a table in our own form, CSV if the file name ends in `.csv`, else JSON, atomically."""
    head = {"device": lut.device, "metric": lut.metric, "unit": lut.unit, "batch": lut.batch, "date": lut.date}
    rows = [
        {
            "key": key,
            "weight_bits": weights,
            "activation_bits": activations,
            "value": entry.value,
            "repetitions": entry.repetitions,
            "spread": None if np.isnan(entry.spread) else entry.spread,
        }
        for (key, (weights, activations)), entry in lut.entries.items()
    ]
    temporary = path.with_suffix(path.suffix + ".tmp")
    if path.suffix == ".csv":
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, [*head, *rows[0]])
            writer.writeheader()
            writer.writerows(head | row for row in rows)
    else:
        temporary.write_text(json.dumps(head | {"entries": rows}, indent=1) + "\n")
    temporary.rename(path)


APQ_KEY = re.compile(r"\((\d+), (\d+), (\d+), (\d+), (\d+), (\d+), (\d+)\)-W(\d+)A(\d+)")


def parse_apq_key(key: str) -> tuple[LayerSpec, Bits]:
    """The layer and the bits of a key of APQ; `head` and `tail` are the first and last convolution of MobileNetV2.

    Raises:
      LutError: the key cannot be parsed.
    """
    aliases = {"head": "(3, 32, 224, 3, 2, 1, 1)-W8A8", "tail": "(320, 1280, 7, 1, 1, 0, 1)-W8A8"}
    match = APQ_KEY.fullmatch(aliases.get(key, key))
    if not match:
        raise LutError(f"key {key!r}: expected (in, out, size, kernel, stride, padding, groups)-W8A8, head or tail")
    ins, outs, size, kernel, stride, padding, groups, weight_bits, activation_bits = map(int, match.groups())
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
    try:
        document = json.loads(path.read_text())
        entries = {}
        for key, values in document.items():
            layer, bits = parse_apq_key(key)
            entries[layer_key(layer), bits] = Entry(float(values[metric]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise LutError(f"cannot read {path} as a table of APQ's: {error}") from error
    return Lut("BitFusion (APQ)", metric, units[metric], entries)


def read_haq(path: pathlib.Path, layers: Sequence[LayerSpec], *, unit: str = "cycles", batch: int = 16) -> Lut:
    """Reads a table in HAQ's form for `layers`, given in order of execution.

    Raises:
      LutError: the file is no NumPy array or a pickled one, has another number of layers, or gives layers of one shape
        different costs.
    """
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise LutError(f"cannot read {path} as a NumPy array: {error}") from error
    if values.ndim != 3 or len(values) != len(layers):
        raise LutError(f"{path} has shape {values.shape}: expected [{len(layers)}, bits, bits], one row for each layer")
    entries: dict[tuple[str, Bits], Entry] = {}
    for layer, costs in zip(layers, values, strict=True):
        for (w, a), value in np.ndenumerate(costs):
            setting = (layer_key(layer), (w + 1, a + 1))
            one_run = float(value) / layer.runs
            if setting in entries and entries[setting].value != one_run:
                raise LutError(f"{path}: layers of one shape ({setting[0]}) cost differently: they cannot share a line")
            entries[setting] = Entry(one_run)
    return Lut("HAQ's accelerator", "latency", unit, entries, batch=batch)
