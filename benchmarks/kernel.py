"""Time of the quantisation kernels relative to a copy of the same tensor.

Each turn runs a kernel several times inside one compiled loop, since a single call on a large tensor is bound by page
faults. Ratios are those of medians over interleaved turns, relative to `x · 1.0001`, with e4m3 as a traced row. A copy
of a tensor that fits in the cores' own caches has one of two speeds, depending on the location of its pages, so every
size is measured on several tensors, and median and range of the ratios are reported. There the quantiser is bound by
instructions; XLA's default vectors of 256 bits need twice as many as AVX-512, so both are measured.
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
LOOPED_MIB = 1024  # total read in one turn
CLIP = 3.0

Kernel = Callable[[jax.Array, FormatTable], jax.Array]


def copy(x: jax.Array, row: FormatTable) -> jax.Array:
    """Reference kernel: reads and writes the tensor; the multiplication is in `looped`."""
    del row
    return x


def static_int8(x: jax.Array, row: FormatTable) -> jax.Array:
    """Fake quantisation with int8 as a constant."""
    del row
    scale = CLIP / 127
    return jnp.clip(jnp.round(x / scale), -127, 127) * scale


def fake_quantize(x: jax.Array, row: FormatTable) -> jax.Array:
    """`gradients.straight_through` with a constant clip threshold."""
    return gradients.straight_through(x, row, jnp.float32(CLIP))


def calibrated(x: jax.Array, row: FormatTable) -> jax.Array:
    """`gradients.straight_through` with a multiple of the root mean square of the tensor as clip threshold."""
    return gradients.straight_through(x, row, CLIP * calibration.root_mean_square(x))


KERNELS: dict[str, Kernel] = {
    "copy": copy,
    "static int8 quantiser": static_int8,
    "round_to_grid": numerics.round_to_grid,
    "straight_through": fake_quantize,
    "straight_through, calibrated": calibrated,
}


def ratios(size_mib: int, seed: int) -> dict[str, float]:
    """Median time of each kernel relative to the copy, on a random tensor of `size_mib` MiB."""
    x = jnp.asarray(np.random.default_rng(seed).standard_normal(size_mib * 2**18), jnp.float32)
    row = format_table([parse_format("e4m3")], [1.0]).row(0)

    def looped(kernel: Kernel) -> Callable[[], None]:
        # The multiplication moves values off the grid again before the next iteration.
        def body(x: jax.Array, row: FormatTable) -> jax.Array:
            return kernel(x, row) * 1.0001

        run = jax.jit(lambda x, row: jax.lax.fori_loop(0, LOOPED_MIB // size_mib, lambda _, x: body(x, row), x))
        return lambda: jax.block_until_ready(run(x, row))

    seconds = timing.interleaved_medians({name: looped(kernel) for name, kernel in KERNELS.items()})
    return {name: seconds[name] / seconds["copy"] for name in KERNELS}


def measure() -> dict[str, dict[str, dict[str, float]]]:
    """Ratios by size, vector width and kernel: minimum, median and maximum over the tensors."""
    return {
        f"{size} MiB, {width}-bit vectors": _measure_in_subprocess(size, width)
        for size in SIZES_MIB
        for width in VECTOR_BITS
    }


def _measure_in_subprocess(size_mib: int, vector_bits: int) -> dict[str, dict[str, float]]:
    """Measures in a subprocess, since XLA reads its flags only at start."""
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
