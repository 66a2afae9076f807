"""One writer: locks that the operating system releases when their process ends, however it ends."""

import contextlib
import datetime
import fcntl
import os
import pathlib
import socket
from collections.abc import Callable, Iterator
from typing import IO, Any

LOCK = "writer.lock"


class BusyError(ValueError):
    """Another process writes to a directory or a file; the message names it."""


@contextlib.contextmanager
def only_writer(directory: pathlib.Path, say: Callable[[str], None] = print) -> Iterator[None]:
    """Holds the lock of a directory, which is created if it is not there; readers need no lock.

    The file of the lock says which process holds it, or held it when it was killed.

    Args:
      directory: what is written to.
      say: receives a message if the last writer was killed, or if this file system has no locks.

    Raises:
      BusyError: another process holds the lock.
      OSError: the directory cannot be created or written to.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / LOCK
    while True:
        with path.open("a+") as file:
            locked = lock(file, f"{directory} is being written to by {_text(file) or 'another process'}")
            if not _is_at(path, file):  # the writer before has just ended, and removed what was opened here
                continue
            holder = _text(file)
            if not locked:
                say(f"{directory} is on a file system without locks: see to it that only one process writes to it")
            elif holder:
                say(f"{directory}: going on after {holder}, which was killed")
            file.truncate(0)
            file.write(
                f"process {os.getpid()} on {socket.gethostname()} since {datetime.datetime.now():%Y-%m-%d %H:%M}"
            )
            file.flush()
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def lock(file: IO[Any], busy: str) -> bool:
    """Locks an open file until it is closed; returns whether its file system has locks.

    Raises:
      BusyError: another process holds the lock; the message begins with `busy`.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise BusyError(f"{busy}: wait until it ends, or use another place") from error
    except OSError:
        return False
    return True


def _text(file: IO[str]) -> str:
    file.seek(0)
    return file.read().strip()


def _is_at(path: pathlib.Path, file: IO[str]) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
