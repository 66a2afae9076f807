"""Interleaved timing: functions run in turn, so that noise of the machine affects all alike."""

import statistics
import time
from collections.abc import Callable, Mapping

REPETITIONS = 15


def interleaved_medians(
    functions: Mapping[str, Callable[[], object]], repetitions: int = REPETITIONS
) -> dict[str, float]:
    """Median seconds of each function over interleaved turns after a warm-up turn; functions must block on results."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(repetitions + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}
