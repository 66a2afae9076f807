"""The memory that a search for formats needs while it trains, estimated from a workload (FLIQS, A.6 and Table 6)."""

from typing import NamedTuple

from hwcost.workload import Workload

WEIGHT_BYTES = ACTIVATION_BYTES = 2  # "model weights and activations are stored in half-precision"
GRADIENT_BYTES = 4  # "gradients are full-precision with no gradient checkpointing"


class SearchMemory(NamedTuple):
    """Bytes of gradients, weights and kept activations, and the number of parameters that the search itself adds."""

    gradient: int
    weight: int
    activation: int
    search_parameters: int


def one_shot(workload: Workload, *, batch_size: int, formats: int) -> SearchMemory:
    """A search that runs each layer under one of its formats: the memory of training, whatever their number."""
    weights = sum(layer.weights for layer in workload)
    return SearchMemory(
        gradient=GRADIENT_BYTES * weights,
        weight=WEIGHT_BYTES * weights,
        activation=ACTIVATION_BYTES * batch_size * sum(layer.output_values for layer in workload),
        search_parameters=formats * len(workload),
    )


def branched(workload: Workload, *, batch_size: int, formats: int) -> SearchMemory:
    """A search that runs each layer once for every format, each with weights of its own, and mixes the results."""
    single = one_shot(workload, batch_size=batch_size, formats=formats)
    return SearchMemory(
        gradient=formats * single.gradient,
        weight=formats * single.weight,
        activation=formats * single.activation,
        search_parameters=single.search_parameters,
    )
