"""Files of JSON lines that are only appended to, for what costs time to compute: a kill loses one line at most."""

import hashlib
import json
import os
import pathlib
from types import TracebackType
from typing import Any


class JournalError(ValueError):
    """A journal that cannot be used; the message names the line."""


class Journal:
    """A file whose first line says what the others are of; each of them has a checksum.

    Attributes:
      entries: what it holds, in order.
    """

    def __init__(self, path: pathlib.Path, head: dict[str, Any], *, option: str) -> None:
        """Opens the file, or starts it; a last line that was cut off is dropped.

        Args:
          path: of the file.
          head: what its entries are of.
          option: what on the command line names another place.

        Raises:
          JournalError: its entries are of something else, or a line is damaged.
        """
        lines = _whole_lines(path) if path.exists() else []
        self.entries: list[dict[str, Any]] = []
        if lines:
            found, self.entries = _parsed(path, lines)
            if found != head:
                raise JournalError(f"{path} is of {found}, not of {head}: give another {option}")
            os.truncate(path, sum(map(len, lines)))
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(head) + "\n")
        self._file = path.open("a")

    def append(self, entry: dict[str, Any]) -> None:
        """Keeps an entry."""
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
    """What a file's entries are of, and the entries.

    Raises:
      JournalError: no such file, an empty one, or a damaged line.
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
