"""Append-only files of JSON lines for results that take long to compute: a killed process loses at most one line."""

import hashlib
import json
import os
import pathlib
from types import TracebackType
from typing import Any


class JournalError(ValueError):
    """A journal cannot be used; the message names the line."""


class Journal:
    """File with a head, which identifies what the entries belong to, and entries, one line each with a checksum.

    Attributes:
      entries: all entries, in order.
    """

    def __init__(self, path: pathlib.Path, head: dict[str, Any], *, option: str) -> None:
        """Opens or creates the file; an incomplete last line is dropped.

        Args:
          path: path of the file.
          head: identity of the entries, such as device and batch size.
          option: command-line option that sets the path, for the error message.

        Raises:
          JournalError: the file has another head, or a line is damaged.
        """
        lines = _whole_lines(path) if path.exists() else []
        self.entries: list[dict[str, Any]] = []
        if lines:
            stored_head, self.entries = _parsed(path, lines)
            if stored_head != head:
                raise JournalError(f"{path} is of {stored_head}, not of {head}: give another {option}")
            os.truncate(path, sum(map(len, lines)))
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(head) + "\n")
        self._file = path.open("a")

    def append(self, entry: dict[str, Any]) -> None:
        """Adds an entry and writes it to the file."""
        self.entries.append(entry)
        self._file.write(json.dumps(entry | {"sha256": _digest(entry)}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def read_journal(path: pathlib.Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Reads the head and the entries of a journal.

    Raises:
      JournalError: the file does not exist or is empty, or a line is damaged.
    """
    try:
        lines = _whole_lines(path)
    except OSError as error:
        raise JournalError(f"cannot read {path}: {error.strerror}") from error
    return _parsed(path, lines)


def _whole_lines(path: pathlib.Path) -> list[bytes]:
    return [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def _digest(entry: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(entry).encode()).hexdigest()[:16]


def _parsed(path: pathlib.Path, lines: list[bytes]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    documents: list[dict[str, Any]] = []
    for number, line in enumerate(lines or [b""], start=1):
        try:
            document = json.loads(line)
            if number > 1 and document.pop("sha256") != _digest(document):
                raise ValueError("its checksum is another")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise JournalError(f"{path}, line {number}: {error}") from error
        documents.append(document)
    return documents[0], documents[1:]
