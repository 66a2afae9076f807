"""Interleaved timing: what is compared runs in turn, so that a noisy machine disturbs all alike."""

import statistics
import time
from collections.abc import Callable, Mapping

REPETITIONS = 15


def interleaved_medians(
    functions: Mapping[str, Callable[[], object]], repetitions: int = REPETITIONS
) -> dict[str, float]:
    """Median seconds of each function, which has to wait for its result, over turns after one untimed turn."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(repetitions + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}
