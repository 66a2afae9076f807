"""Speed of exported graphs against the same network in float32."""

import pathlib
import statistics
import tempfile
import time
from typing import Any

import numpy as np

from launch.runtimes import self_check

ROUNDS = 21


def compare_speed(file: pathlib.Path, in_float32: bytes, x: np.ndarray) -> list[dict[str, Any]]:
    """Medians of `ROUNDS` rounds in which both run in turn, in each installed runtime of the file.

    Args:
      file: the exported graph.
      in_float32: the network in float32, as a graph.
      x: an input of both.

    Returns:
      By runtime `"runtime"`, `"batch"`, `"milliseconds"` and `"milliseconds_in_float32"`.
    """
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        other = pathlib.Path(directory) / f"float32{file.suffix}"
        other.write_bytes(in_float32)
        for _, start in self_check.runtimes_of(file):
            runners = [start(file), start(other)]
            seconds: list[list[float]] = [[], []]
            for turn in range(ROUNDS + 1):
                for runner, measured in zip(runners, seconds, strict=True):
                    begin = time.perf_counter()
                    runner.run(x)
                    if turn:
                        measured.append(time.perf_counter() - begin)
            ours, theirs = (round(1e3 * statistics.median(measured), 4) for measured in seconds)
            told = {"runtime": runners[0].runtime, "batch": len(x)}
            rows.append({**told, "milliseconds": ours, "milliseconds_in_float32": theirs})
    return rows
