"""The quantiser against a copy of the same tensor.

Each turn runs a kernel several times inside one compiled loop, since a single call on a large tensor is bound by page
faults. Ratios of medians over interleaved turns to `x · 1.0001`, under e4m3 as a traced row. The copy of a tensor that
fits the cores' own caches runs at one of two speeds, by where its pages happen to lie, so every size is measured on
several tensors, and the range of the ratios is told beside their median. There the quantiser is bound by instructions,
of which XLA's default vectors of 256 bits take twice as many as AVX-512 needs; both are measured.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from aqt_like import calibration, gradients, numerics
from aqt_like.formats import FormatTable, format_table, parse_format
from benchmarks import timing

SIZES_MIB = (64, 2)
VECTOR_BITS = (256, 512)
TENSORS = 5
LOOPED_MIB = 1024  # read in one turn
CLIP = 3.0

Kernel = Callable[[jax.Array, FormatTable], jax.Array]


def copy(x: jax.Array, row: FormatTable) -> jax.Array:
    """The yardstick: reads and writes the tensor, as any kernel has to; the multiplication is `looped`'s."""
    del row
    return x


def static_int8(x: jax.Array, row: FormatTable) -> jax.Array:
    """What a quantiser written for int8 alone does."""
    del row
    scale = CLIP / 127
    return jnp.clip(jnp.round(x / scale), -127, 127) * scale


def fake_quantize(x: jax.Array, row: FormatTable) -> jax.Array:
    """The whole of `gradients.straight_through`, with a given threshold."""
    return gradients.straight_through(x, row, jnp.float32(CLIP))


def calibrated(x: jax.Array, row: FormatTable) -> jax.Array:
    """The same, with the threshold a multiple of the tensor's own root mean square."""
    return gradients.straight_through(x, row, CLIP * calibration.root_mean_square(x))


KERNELS: dict[str, Kernel] = {
    "copy": copy,
    "static int8 quantiser": static_int8,
    "round_to_grid": numerics.round_to_grid,
    "straight_through": fake_quantize,
    "straight_through, calibrated": calibrated,
}


def ratios(size_mib: int, seed: int) -> dict[str, float]:
    """Median time of each kernel over that of the copy, on a tensor of so many MiB."""
    x = jnp.asarray(np.random.default_rng(seed).standard_normal(size_mib * 2**18), jnp.float32)
    row = format_table([parse_format("e4m3")], [1.0]).row(0)

    def looped(kernel: Kernel) -> Callable[[], None]:
        # Multiplied in each round, so that no round sees numbers that are on the grid already.
        def body(x: jax.Array, row: FormatTable) -> jax.Array:
            return kernel(x, row) * 1.0001

        run = jax.jit(lambda x, row: jax.lax.fori_loop(0, LOOPED_MIB // size_mib, lambda _, x: body(x, row), x))
        return lambda: jax.block_until_ready(run(x, row))

    seconds = timing.interleaved_medians({name: looped(kernel) for name, kernel in KERNELS.items()})
    return {name: seconds[name] / seconds["copy"] for name in KERNELS}


def measure() -> dict[str, dict[str, dict[str, float]]]:
    """Ratios by size, vector width and kernel: least, median and largest over the tensors."""
    return {
        f"{size} MiB, {width}-bit vectors": _in_a_process_of_its_own(size, width)
        for size in SIZES_MIB
        for width in VECTOR_BITS
    }


def _in_a_process_of_its_own(size_mib: int, vector_bits: int) -> dict[str, dict[str, float]]:
    """XLA reads its options when it starts."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_prefer_vector_width={vector_bits}"
    command = [sys.executable, "-m", "benchmarks.kernel", str(size_mib)]
    done = subprocess.run(command, env={**os.environ, "XLA_FLAGS": flags}, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def main() -> None:
    """Prints the ratios of one size, in MiB, as JSON."""
    runs = [ratios(int(sys.argv[1]), seed) for seed in range(TENSORS)]
    print(
        json.dumps(
            {
                name: {
                    "least": min(run[name] for run in runs),
                    "median": statistics.median(run[name] for run in runs),
                    "largest": max(run[name] for run in runs),
                }
                for name in KERNELS
            }
        )
    )


if __name__ == "__main__":
    main()
