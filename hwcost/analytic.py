"""Costs that follow from arithmetic alone."""

from collections.abc import Mapping, Sequence

import numpy as np

from aqt_like.formats import Format
from hwcost import table as table_lib
from hwcost.space import Decision, SearchSpace
from hwcost.workload import LayerSpec, Workload


def bit_operations(layer: LayerSpec, fmt: Format) -> float:
    """Bit operations of a layer whose weights and input are both in `fmt`: bits² · MACs (FLIQS, Eq. 1)."""
    return fmt.bits**2 * layer.macs


def format_decision(path: str) -> str:
    """Name of the decision that picks the format of the layer at `path`."""
    return f"{path}.format"


def format_space(workload: Workload, formats: Sequence[Format]) -> SearchSpace:
    """One decision per layer: which of `formats` its weights and its input have (FLIQS, A.5)."""
    options = tuple(f.name for f in formats)
    return SearchSpace(tuple(Decision(format_decision(layer.path), options) for layer in workload))


def bit_operations_table(workload: Workload, space: SearchSpace, formats: Sequence[Format]) -> table_lib.CostTable:
    """The table of `bit_operations` over a `format_space`."""
    return table_lib.build(
        space,
        [
            table_lib.Term(
                (format_decision(layer.path),), np.asarray([bit_operations(layer, f) for f in formats], np.float64)
            )
            for layer in workload
        ],
    )


def uniform_bit_operations(workload: Workload, fmt: Format) -> float:
    """Total bit operations with every layer in `fmt`."""
    return sum(bit_operations(layer, fmt) for layer in workload)


def weight_bytes(layer: LayerSpec, fmt: Format) -> float:
    """Bytes of a layer's weights, densely packed, without scales and biases."""
    return layer.weights * fmt.bits / 8


def activation_bytes(layer: LayerSpec, fmt: Format) -> float:
    """Bytes of a layer's input and output for one example, both in `fmt`: what has to be held while it runs."""
    return (layer.input_values + layer.output_values) * fmt.bits / 8


def layer_formats(space: SearchSpace, workload: Workload, genome: Sequence[int] | np.ndarray) -> Mapping[str, str]:
    """The format name of each layer, by path."""
    choices = space.decode(genome)
    return {layer.path: choices[format_decision(layer.path)] for layer in workload}
