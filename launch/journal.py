"""Append-only files of JSON lines for results that take long to compute: a killed process loses at most one line.

The first line, the head, says what the entries belong to. Each entry has a number and a checksum over head, number and
entry: a line that is torn, edited, removed, doubled or of another file is noticed, and all others are still good.
"""

import hashlib
import itertools
import json
import pathlib
from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple

from hwcost.strict_json import loads_finite
from launch.one_writer import BusyError, lock


class JournalError(ValueError):
    """A journal cannot be used; the message names the line."""


class Journal:
    """A journal that is written to, by this process alone.

    Attributes:
      numbered: entries by number, from 0. One that is missing has lost its line, and gets another by `append`.
    """

    def __init__(
        self, path: pathlib.Path, head: dict[str, Any], *, option: str, say: Callable[[str], None] | None = None
    ) -> None:
        """Opens or creates the file. Lines that are no good are told, and moved to a file beside it.

        Args:
          path: path of the file.
          head: identity of the entries, such as device and batch size.
          option: command-line option that sets the path, for the error message.
          say: receives a message for each line that is no good or missing; without it, only an incomplete last line is
            passed over.

        Raises:
          JournalError: the file has another head; or a line is no good or missing, without `say`.
          BusyError: another process writes to the file.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._head = path, _as_read(head)
        self._file = self._opened()
        try:
            lines = path.read_bytes().splitlines(keepends=True)
            if not lines or not lines[0].endswith(b"\n"):  # it is new, or was killed while it wrote the head
                self._replace([f"{json.dumps(head)}\n".encode()])
                lines = []
            self.numbered = self._kept(lines, option, say) if lines else {}
            self._free = (number for number in itertools.count() if number not in self.numbered)
        except BaseException:
            self._file.close()
            raise

    def _kept(self, lines: list[bytes], option: str, say: Callable[[str], None] | None) -> dict[int, dict[str, Any]]:
        contents = _parsed(self._path, lines)
        _check_head(self._path, contents.head, self._head, option)
        if say is None:
            _check_faults(self._path, _parsed(self._path, _whole(lines)))
        else:
            for fault in contents.faults:
                say(f"{self._path}, {fault}")
        if damaged := _whole(contents.bad_lines):
            with self._path.with_name(f"{self._path.name}.damaged").open("ab") as aside:
                aside.writelines(damaged)
        if contents.bad_lines:
            self._replace(contents.good_lines)
        return contents.numbered

    def _opened(self) -> Any:
        file = self._path.open("a")
        try:
            lock(file, f"{self._path} is being written to by another process")
        except BusyError:
            file.close()
            raise
        return file

    def _replace(self, lines: list[bytes]) -> None:
        temporary = self._path.with_name(f"{self._path.name}.tmp")
        temporary.write_bytes(b"".join(lines))
        temporary.replace(self._path)
        self._file.close()
        self._file = self._opened()

    @property
    def entries(self) -> list[dict[str, Any]]:
        """All entries, in the order of their numbers."""
        return [self.numbered[number] for number in sorted(self.numbered)]

    def append(self, entry: dict[str, Any]) -> None:
        """Adds an entry with the first number that is free, and writes it to the file.

        Raises:
          JournalError: a number in it is not finite.
        """
        number = next(self._free)
        checked = entry | {"number": number, "sha256": _digest([self._head, number, entry])}
        try:
            line = json.dumps(checked, allow_nan=False)
        except ValueError as error:
            raise JournalError(f"{self._path}: {entry} has a number that is not finite") from error
        self.numbered[number] = entry
        self._file.write(line + "\n")
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


def read_journal(
    path: pathlib.Path, head: dict[str, Any] | None = None, *, option: str = "path"
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Reads the head and the entries of a journal, without an incomplete last line.

    Args:
      path: path of the file.
      head: the head that it has to have, if given.
      option: see `Journal`.

    Raises:
      JournalError: the file does not exist or is empty, has another head, or a line is no good or missing.
    """
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise JournalError(f"cannot read {path}: {error.strerror}") from error
    contents = _parsed(path, _whole(lines))
    if head is not None:
        _check_head(path, contents.head, _as_read(head), option)
    _check_faults(path, contents)
    return contents.head, [contents.numbered[number] for number in sorted(contents.numbered)]


def _as_read(document: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(document))


def _check_head(path: pathlib.Path, stored: dict[str, Any], head: dict[str, Any], option: str) -> None:
    if stored != head:
        raise JournalError(f"{path} is of {stored}, not of {head}: give another {option}")


def _digest(document: Any) -> str:
    return hashlib.sha256(json.dumps(document).encode()).hexdigest()[:16]


class _Contents(NamedTuple):
    """What the lines of a journal hold; faults name the lines that are no good, and the entries that are missing."""

    head: dict[str, Any]
    numbered: dict[int, dict[str, Any]]
    good_lines: list[bytes]
    bad_lines: list[bytes]
    faults: list[str]


def _whole(lines: list[bytes]) -> list[bytes]:
    """The lines without an incomplete last one, which a killed process may leave."""
    return lines if not lines or lines[-1].endswith(b"\n") else lines[:-1]


def _check_faults(path: pathlib.Path, contents: _Contents) -> None:
    if contents.faults:
        more = f" (and {len(contents.faults) - 1} more)" if len(contents.faults) > 1 else ""
        raise JournalError(f"{path}, {contents.faults[0]}{more}: the command that wrote the file makes it good again")


def _parsed(path: pathlib.Path, lines: list[bytes]) -> _Contents:
    try:
        first, *others = lines or [b""]
        head = dict(loads_finite(first))
    except (ValueError, TypeError) as error:
        raise JournalError(f"{path}, line 1: {error}") from error
    contents = _Contents(head, {}, [first], [], [])
    for place, line in enumerate(others):
        try:
            number, entry = _entry(head, line, place)
            if number in contents.numbered:
                raise ValueError(f"it is entry {number} again")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            contents.bad_lines.append(line)
            contents.faults.append(f"line {place + 2}: {error}")
        else:
            contents.numbered[number] = entry
            contents.good_lines.append(line)
    if missing := sorted(set(range(max(contents.numbered, default=-1))) - contents.numbered.keys()):
        contents.faults.append(f"entries {', '.join(map(str, missing))}: their lines are missing")
    return contents


def _entry(head: dict[str, Any], line: bytes, place: int) -> tuple[int, dict[str, Any]]:
    """Number and contents of an entry; those of earlier versions have no number but their place."""
    if not line.endswith(b"\n"):
        raise ValueError("it is torn")
    entry = loads_finite(line)
    digest, number = entry.pop("sha256"), entry.pop("number", None)
    if digest != _digest(entry if number is None else [head, number, entry]):
        raise ValueError("its checksum is another")
    return place if number is None else number, entry
