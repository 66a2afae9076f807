"""Orderly interruption: a signal becomes a request that the training loop heeds after a checkpoint."""

import contextlib
import signal
import types
from collections.abc import Iterator
from typing import Any


class StopRequested:
    """Whether, and by which signal, this process was asked to stop."""

    signal_number: int | None = None

    def __bool__(self) -> bool:
        return self.signal_number is not None


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequested]:
    """Turns the first SIGTERM or SIGINT into a request that the loop heeds; a second one acts as usual."""
    request = StopRequested()

    def note(number: int, frame: types.FrameType | None) -> None:
        del frame
        request.signal_number = number
        signal.signal(number, before[number])

    before: dict[int, Any] = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
