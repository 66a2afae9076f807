"""Interruption by signals: a signal requests the training loop to stop after a checkpoint."""

import contextlib
import signal
import types
from collections.abc import Iterator
from typing import Any


class StopRequested:
    """Request to stop: true once a signal has arrived, with the number of that signal."""

    signal_number: int | None = None

    def __bool__(self) -> bool:
        return self.signal_number is not None


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequested]:
    """Turns the first SIGTERM or SIGINT into a request to stop; a second one has its usual effect."""
    request = StopRequested()

    def request_stop(number: int, frame: types.FrameType | None) -> None:
        del frame
        request.signal_number = number
        signal.signal(number, handlers[number])

    handlers: dict[int, Any] = {
        number: signal.signal(number, request_stop) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield request
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
