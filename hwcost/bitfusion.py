"""BitFusion (Sharma et al., 2018), the accelerator of APQ (§5): latency to the cycle, energy within a few per mille.

A layer is split into tiles that fit the on-chip buffers; the tile sizes and the order of the loops over tiles are found
by exhaustive search for the lowest latency. The rules and energy coefficients were recovered from the published lookup
table of APQ (§3.3), with which the tests compare: weights and activations of 4, 6 and 8 bits. Two bits follow the same
rules, and sixteen bits take several passes of eight, as in the fusion units; neither is validated.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from aqt_like.formats import Format, LayerFormat
from hwcost.cost_model import CostModel
from hwcost.workload import LayerSpec

BITS = (2, 4, 6, 8, 16)
_KILOBYTE = 8 * 1024
_ACCUMULATOR_BITS = 32


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """Parameters of a BitFusion array. The defaults are APQ's; `Energy` is fitted to those.

    Attributes:
      rows, columns: size of the array of fusion units; input channels map to rows, output channels to columns.
      bus_bits: width of the off-chip bus, bits per cycle.
      weight_buffer, activation_buffer, output_buffer: bits, half of each double buffer.
      clock: clock frequency, Hz.
    """

    rows: int = 16
    columns: int = 32
    bus_bits: int = 192
    weight_buffer: int = 32 * _KILOBYTE
    activation_buffer: int = 16 * _KILOBYTE
    output_buffer: int = 8 * _KILOBYTE
    clock: float = 500e6


class Energy(NamedTuple):
    """Energy coefficients in nanojoules, fitted to APQ's table: per cycle, busy cycle, off-chip or buffered bit."""

    cycle: float = 0.4245
    busy_cycle: float = 0.4855
    off_chip_bit: float = 0.015
    weight_read: float = 2.1366e-5
    weight_filled: float = 2.8916e-5
    activation_read: float = 5.9474e-5
    activation_filled: float = 1.13704e-4
    output_drained: float = 3.3155e-5
    output_accumulated: float = 7.3084e-5


APQ_ACCELERATOR, APQ_ENERGY = Accelerator(), Energy()


class Geometry(NamedTuple):
    """A convolution at batch size 1; a dense layer is a 1×1 convolution.

    Tiles of a dilated convolution hold all the inputs that its taps span. The published table has none.

    Attributes:
      in_channels, out_channels: channels of all groups together.
      output: rows and columns of the output.
      kernel: rows and columns of the kernel.
      stride: stride along both axes.
      groups: number of groups; equal to `in_channels` if depthwise.
      dilation: rows and columns from tap to tap of the kernel.
    """

    in_channels: int
    out_channels: int
    output: tuple[int, int]
    kernel: tuple[int, int]
    stride: int
    groups: int
    dilation: tuple[int, int] = (1, 1)


class Cost(NamedTuple):
    """Latency in cycles, int64[N], and energy in nanojoules, float64[N], of N settings."""

    cycles: np.ndarray
    energy: np.ndarray

    def milliseconds(self, accelerator: Accelerator) -> np.ndarray:
        """Latency in milliseconds, float64[N]."""
        return self.cycles / accelerator.clock * 1e3

    @property
    def millijoules(self) -> np.ndarray:
        """Energy in millijoules, float64[N]."""
        return self.energy * 1e-6


# The four loops over tiles, and the loops that index each of the three kinds of data.
_ROW, _COLUMN, _INPUT, _OUTPUT = range(4)
_ORDERS = np.asarray(list(itertools.permutations(range(4))))  # [24, 4], innermost first
_ACTIVATIONS, _WEIGHTS, _RESULTS = ({_ROW, _COLUMN, _INPUT}, {_INPUT, _OUTPUT}, {_ROW, _COLUMN, _OUTPUT})


def storage_bits(bits: int) -> int:
    """The bits in which a `bits`-wide value is stored in buffers and computed: 2, 4, 8 or 16.

    Raises:
      ValueError: the array cannot compute with `bits` bits.
    """
    if not 1 < bits <= BITS[-1]:
        raise ValueError(f"{bits} bits: BitFusion computes integers of 2 to {BITS[-1]} bits")
    return 1 << (bits - 1).bit_length()


def cost(
    geometry: Geometry,
    weight_bits: Sequence[int],
    activation_bits: Sequence[int],
    accelerator: Accelerator = APQ_ACCELERATOR,
    energy: Energy = APQ_ENERGY,
) -> Cost:
    """Latency and energy of one layer for N settings of weight and activation bits.

    Args:
      geometry: the layer.
      weight_bits, activation_bits: bits of each setting, N each.
      accelerator: the array.
      energy: its energy coefficients.

    Raises:
      ValueError: the array cannot compute with some bits, or even the smallest tile does not fit the buffers.
    """
    # Settings with the same storage bits share tiles; they differ only in the bits that they move.
    cycles = np.empty(len(weight_bits), np.int64)
    nanojoules = np.empty(len(weight_bits), np.float64)
    stored = [(storage_bits(w), storage_bits(a)) for w, a in zip(weight_bits, activation_bits, strict=True)]
    for widths in set(stored):
        indices = [i for i, pair in enumerate(stored) if pair == widths]
        cycles[indices], nanojoules[indices] = _cost_of_widths(
            geometry,
            *widths,
            np.asarray([weight_bits[i] for i in indices], np.float64)[:, None, None],
            np.asarray([activation_bits[i] for i in indices], np.float64)[:, None, None],
            accelerator,
            energy,
        )
    return Cost(cycles, nanojoules)


def _cost_of_widths(
    geometry: Geometry,
    weight_width: int,
    activation_width: int,
    weight_bits: np.ndarray,
    activation_bits: np.ndarray,
    accelerator: Accelerator,
    energy: Energy,
) -> tuple[np.ndarray, np.ndarray]:
    """Cycles, int64[N], and energy, float64[N], of settings that are stored at the same widths.

    `weight_bits` and `activation_bits` are float64[N, 1, 1]: the axes of arrays are settings, tiles and loop orders.
    Values are whole numbers below 2^53, exact in float64.
    """
    # Inputs that one column multiplies per cycle: a fusion unit multiplies more values if they are narrower.
    lanes = accelerator.rows * 8 * 8 / (weight_width * activation_width)
    repeats, ins, outs = _products(geometry, lanes / 2)
    (kernel_rows, kernel_columns), stride = geometry.kernel, geometry.stride
    taps = kernel_rows * kernel_columns

    side, inner, outer = np.meshgrid(
        _tile_sizes(1, max(geometry.output)),
        _tile_sizes(1, ins),
        _tile_sizes(accelerator.columns, outs),
        indexing="ij",
    )
    rows, columns = np.minimum(side, geometry.output[0]), np.minimum(side, geometry.output[1])
    inner, outer = np.minimum(inner, ins), np.minimum(outer, outs)
    height, width = (
        (taps - 1) * dilation + 1 for taps, dilation in zip(geometry.kernel, geometry.dilation, strict=True)
    )
    inputs = ((rows - 1) * stride + height) * ((columns - 1) * stride + width)
    # Bits of one tile in each buffer, padded to the array.
    capacity = (
        inputs * _padded(inner, lanes) * activation_width,
        _padded(taps * inner, lanes) * _padded(outer, accelerator.columns) * weight_width,
        rows * columns * _padded(outer, accelerator.columns) * _ACCUMULATOR_BITS,
    )
    limits = (accelerator.activation_buffer, accelerator.weight_buffer, accelerator.output_buffer)
    fits = np.all([c <= limit for c, limit in zip(capacity, limits, strict=True)], axis=0)
    if not fits.any():
        raise ValueError(f"{geometry}: not even the smallest tile fits the buffers")

    def fitting(values: np.ndarray) -> np.ndarray:
        return values[fits].astype(np.float64)[None, :, None]

    rows, columns, inner, outer, inputs = (fitting(v) for v in (rows, columns, inner, outer, inputs))
    counts = np.concatenate(
        [
            np.ceil(geometry.output[0] / rows),
            np.ceil(geometry.output[1] / columns),
            np.ceil(ins / inner),
            np.ceil(outs / outer),
        ],
        axis=0,
    )[:, :, 0]  # [4, tiles]
    tiles = counts.prod(axis=0)[None, :, None]
    traffic = (
        inputs * inner * activation_bits,
        taps * inner * outer * weight_bits,
        rows * columns * outer * _ACCUMULATOR_BITS,
    )
    moved, resident = zip(
        *(
            _bus_traffic(one_tile, fitting(padded), limit, counts, indexing_loops)
            for one_tile, padded, limit, indexing_loops in zip(
                traffic, capacity, limits, (_ACTIVATIONS, _WEIGHTS, _RESULTS), strict=True
            )
        ),
        strict=True,
    )
    activations, weights, results = moved
    bus = accelerator.bus_bits
    blocks = np.ceil(outer / accelerator.columns)
    pixels = rows * columns
    busy = tiles * blocks * pixels * taps * np.ceil(inner / lanes)
    fill = np.ceil(sum(resident) / bus) + np.ceil(resident[2] / bus)
    transfer = np.ceil((activations + weights + results) / bus) + np.ceil(results / bus)
    cycles = np.maximum(busy + fill, transfer)
    steps = tiles * taps * inner * pixels  # multiplications of one column
    nanojoules = (
        energy.cycle * cycles
        + energy.busy_cycle * busy
        + energy.off_chip_bit * (activations + weights + 2 * results)
        + energy.weight_read * steps * outer * weight_bits
        + energy.weight_filled * weights
        + energy.activation_read * steps * blocks * activation_bits
        + energy.activation_filled * activations
        + energy.output_drained * results
        + energy.output_accumulated * (results + tiles * pixels * outer * _ACCUMULATOR_BITS)
    )
    settings = max(len(weight_bits), len(activation_bits))
    cycles, nanojoules = (v.reshape(settings, -1) for v in np.broadcast_arrays(cycles, nanojoules))
    best = np.lexsort((nanojoules, cycles), axis=-1)[:, :1]
    chosen = (np.take_along_axis(v, best, axis=1)[:, 0] for v in (cycles, nanojoules))
    best_cycles, best_nanojoules = chosen
    return (repeats * best_cycles).astype(np.int64), repeats * best_nanojoules


def _products(geometry: Geometry, depthwise_channels: float) -> tuple[int, int, int]:
    """A convolution as repeated dense products: number of repeats, input channels, output channels.

    A depthwise convolution is computed for several channels at a time, enough to occupy half of the rows, as if dense.
    """
    if geometry.groups == 1:
        return 1, geometry.in_channels, geometry.out_channels
    if geometry.groups == geometry.in_channels:
        channels = max(int(depthwise_channels), 1)
        return math.ceil(geometry.out_channels / channels), channels, channels
    groups = geometry.groups
    return groups, geometry.in_channels // groups, geometry.out_channels // groups


def _tile_sizes(unit: int, size: int) -> np.ndarray:
    """Candidate tile sizes: `unit` times powers of two, up to the first that is at least `size`."""
    return unit * 2 ** np.arange(math.ceil(math.log2(math.ceil(size / unit))) + 1)


def _padded(size: np.ndarray, multiple: float) -> np.ndarray:
    return np.ceil(size / multiple) * multiple


def _bus_traffic(
    one_tile: np.ndarray, capacity: np.ndarray, limit: int, counts: np.ndarray, indexing_loops: set[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Bits of one kind of data that cross the bus, and bits that stay in the buffer: float64[settings, tiles, orders].

    Loops are processed from the innermost outward. Data that a loop does not index are reused in all its iterations;
    data that it indexes are kept for all its iterations if they fit. Once they do not fit, they are fetched again in
    every iteration of every loop further out.
    """
    settings, tiles = max(len(one_tile), 1), counts.shape[1]
    shape = (settings, tiles, len(_ORDERS))
    traffic, held = (np.broadcast_to(one_tile, shape).copy() for _ in range(2))
    capacity = np.broadcast_to(capacity, (1, *shape[1:])).copy()
    stays = np.ones((1, *shape[1:]), bool)
    dependent = np.isin(np.arange(4), list(indexing_loops))
    for loop in _ORDERS.T:
        turns, grows = counts[loop].T[None], dependent[loop][None, None]
        traffic = np.where(grows | ~stays, traffic * turns, traffic)
        capacity = np.where(grows & stays, capacity * turns, capacity)
        stays = stays & (capacity <= limit)
        held = np.where(stays, traffic, held)
    return traffic, held


def layer_geometry(layer: LayerSpec, accelerator: Accelerator = APQ_ACCELERATOR) -> Geometry:
    """The convolution that computes a layer on the array, or each of the equal parts that run one after the other.

    A convolution with fewer input channels than the array has rows, as over images, is unrolled to a 1×1 convolution.

    Raises:
      ValueError: the array cannot compute the layer: a product of activations, a transposed convolution, one over a
        dilated input or over three axes, or unequal strides.
    """
    sizes = f"from {layer.input_size} to {layer.output_size}"
    if layer.kind in ("product", "conv_transpose"):
        raise ValueError(f"{layer.path}: BitFusion has no {layer.kind} {sizes}")
    parts = _equal_parts(layer)
    ins, outs = layer.in_channels, layer.out_channels
    if layer.kind == "conv_local":
        return Geometry(ins * math.prod(layer.kernel), outs, (1, 1), (1, 1), 1, 1)
    if not layer.kernel:
        *rows, columns = layer.output_size or (1,)
        output = (math.prod(rows), columns) if rows else (columns, 1)
        return Geometry(ins // parts, outs // parts, output, (1, 1), 1, 1)
    if len(layer.output_size) > 2 or max(layer.input_dilation, default=1) > 1:
        raise ValueError(f"{layer.path}: BitFusion has no conv over three axes or over a dilated input, {sizes}")
    if len(set(layer.stride)) > 1:
        raise ValueError(f"{layer.path}: BitFusion has no stride of {layer.stride}, different along the axes")
    height, width = (*layer.kernel, 1)[:2]
    rows, columns = (*layer.output_size, 1)[:2]
    if layer.groups == 1 and layer.in_channels < accelerator.rows:
        return Geometry(ins * height * width, outs, (rows, columns), (1, 1), 1, 1)
    down, across = (*layer.dilation, 1, 1)[:2]
    return Geometry(ins, outs, (rows, columns), (height, width), layer.stride[0], layer.groups, (down, across))


def _equal_parts(layer: LayerSpec) -> int:
    """The number of convolutions as which the array computes one run of a layer, one after the other.

    A dense layer with groups is a product per group, a convolution with unshared weights one per position. Groups of
    a convolution are a part of its `Geometry`.
    """
    if layer.kind == "conv_local":
        return math.prod(layer.output_size)
    return layer.groups if layer.kind == "dense" else 1


def _bits(layer: LayerSpec, formats: Sequence[Format]) -> list[int]:
    """Bits of each format; bf16 counts as a 16-bit integer.

    Raises:
      ValueError: another float, or more than 16 bits.
    """
    for fmt in formats:
        if not (fmt.is_integer or fmt.name == "bf16") or fmt.bits > BITS[-1]:
            raise ValueError(f"{layer.path}: BitFusion computes integers of 2 to {BITS[-1]} bits, {fmt.name} is none")
    return [fmt.bits for fmt in formats]


def cost_models(accelerator: Accelerator = APQ_ACCELERATOR, energy: Energy = APQ_ENERGY) -> dict[str, CostModel]:
    """Cost models of an accelerator: `latency` in milliseconds and `energy` in millijoules (APQ, §3.3 and Table 2)."""

    def layer_costs(layer: LayerSpec, formats: Sequence[LayerFormat]) -> Cost:
        weight_bits = _bits(layer, [f.weights for f in formats])
        input_bits = _bits(layer, [f.inputs for f in formats])
        geometry = layer_geometry(layer, accelerator)
        try:
            return cost(geometry, weight_bits, input_bits, accelerator, energy)
        except ValueError as error:
            raise ValueError(f"{layer.path}: {error}") from error

    def times(layer: LayerSpec) -> float:
        return layer.runs * _equal_parts(layer)

    return {
        "latency": CostModel(lambda layer, f: times(layer) * layer_costs(layer, f).milliseconds(accelerator), "ms"),
        "energy": CostModel(lambda layer, f: times(layer) * layer_costs(layer, f).millijoules, "mJ"),
    }
