"""The rounding kernel against a copy of the same tensor.

    python -m benchmarks.kernel

Each turn runs a kernel several times inside one compiled loop, since a single call on a large tensor is bound by page
faults. Ratios of medians over interleaved turns to `x · 1.0001`; writes results/kernel.json beside this file.
"""

import json
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from aqt_like import formats, gradients, numerics
from aqt_like.formats import FormatTable
from benchmarks import timing

RESULTS = pathlib.Path(__file__).parent / "results" / "kernel.json"
SIZES_MIB = (64, 2)
LOOPED_MIB = 1024  # read in one turn

Kernel = Callable[[jax.Array, FormatTable], jax.Array]


def copy(x: jax.Array, row: FormatTable) -> jax.Array:
    """The yardstick: reads and writes the tensor, as any kernel has to."""
    del row
    return x * 1.0001


def fake_quantize(x: jax.Array, row: FormatTable) -> jax.Array:
    """Scaling, clipping, rounding and the straight-through sum, with a given threshold."""
    return gradients.straight_through(x, row, jnp.float32(3.0))


KERNELS: dict[str, Kernel] = {"copy": copy, "round_to_grid": numerics.round_to_grid, "fake_quantize": fake_quantize}


def ratios(size_mib: int) -> dict[str, float]:
    """Median time of each kernel over that of the copy, on a tensor of so many MiB, under e4m3 as a traced row."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal(size_mib * 2**18), jnp.float32)
    row = formats.format_table([formats.parse("e4m3")], [1.0]).row(0)

    def looped(kernel: Kernel) -> Callable[[], None]:
        # Multiplied in each round, so that no round sees numbers that are on the grid already.
        def body(_: jax.Array, x: jax.Array, row: FormatTable) -> jax.Array:
            return kernel(x if kernel is copy else x * 1.0001, row)

        run = jax.jit(lambda x, row: jax.lax.fori_loop(0, LOOPED_MIB // size_mib, lambda i, x: body(i, x, row), x))
        return lambda: jax.block_until_ready(run(x, row))

    seconds = timing.interleaved_medians({name: looped(kernel) for name, kernel in KERNELS.items()})
    return {name: seconds[name] / seconds["copy"] for name in KERNELS}


def main() -> None:
    """Measures, prints and stores."""
    document = {
        "command": "python -m benchmarks.kernel",
        "device": f"{jax.devices()[0].device_kind}, {jax.device_count()} device",
        "repetitions": timing.REPETITIONS,
        "time_over_copy": {f"{size} MiB": ratios(size) for size in SIZES_MIB},
    }
    RESULTS.write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(document["time_over_copy"], indent=1))


if __name__ == "__main__":
    main()
