"""Progress of a run: a live panel or plain lines on the console, and metrics as JSON lines in a file."""

import functools
import hashlib
import itertools
import json
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from hwcost.strict_json import loads_finite
from launch.training.mesh import device_text

PLAIN_LINE_SECONDS = 10.0

SHOWN = {
    "train_quality": "train {quality}",
    "valid_quality": "validation {quality}",
    "relative_cost": "cost / target",
    "entropy": "entropy (nats)",
    "reward": "reward",
    "loss": "loss",
}


class Recorder:
    """Context manager that writes `metrics.jsonl` and shows progress.

    Each line has the mean of each metric over the steps since the previous line, `step` (completed steps), `since`
    (those of the previous line), `seconds` (training time, over all resumptions), `steps_per_second`, `policy`
    (probabilities `[D, Kmax]`), `devices`, and a checksum.
    """

    def __init__(
        self, path: pathlib.Path, *, title: str, quality: str, first_step: int, total_steps: int, console: Console
    ) -> None:
        self._labels = {name: label.format(quality=quality) for name, label in SHOWN.items()}
        self._title, self._total, self._step, self._console = title, total_steps, first_step, console
        earlier = [line for line in read_metrics(path, plainly(console)) if line["step"] <= first_step]
        if first_step and (last := earlier[-1]["step"] if earlier else 0) < first_step:
            plainly(console)(f"{path}: the lines from step {last} to step {first_step} are missing, and their time")
        temporary = path.with_name(f"{path.name}.tmp")
        temporary.write_text("".join(map(_as_text, earlier)))
        temporary.replace(path)
        self._file = path.open("a")
        self._seconds = earlier[-1]["seconds"] if earlier else 0.0
        self.devices = [name for name, _ in itertools.groupby(line["devices"] for line in earlier if "devices" in line)]
        """The devices that steps were computed on, in turn; the result is bit-identical on the same only."""
        if self.devices and self.devices[-1] != (now := device_text()):
            plainly(console)(
                f"{title}: goes on with {now}, after {self.devices[-1]}: the bits of its result depend on it"
            )
        self._last_time = time.perf_counter()
        self._last_plain = -PLAIN_LINE_SECONDS
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None

    def __enter__(self) -> "Recorder":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()
        self._file.close()

    @property
    def seconds(self) -> float:
        """Training time in seconds, over all resumptions."""
        return self._seconds

    def record(self, steps: Sequence[Mapping[str, Any]], policy: np.ndarray) -> None:
        """Writes and shows the metrics of the latest `steps`; `policy` contains probabilities, float[D, Kmax]."""
        now = time.perf_counter()
        spent, self._last_time = now - self._last_time, now
        self._seconds += spent
        since = self._step
        self._step += len(steps)
        line: dict[str, Any] = {
            "step": self._step,
            "since": since,
            "seconds": round(self._seconds, 3),
            "steps_per_second": round(len(steps) / spent, 3),
        }
        for name in steps[0]:
            if np.ndim(steps[0][name]) == 0:
                line[name] = float(np.mean([metrics[name] for metrics in steps]))
        line["policy"] = np.round(policy, 4).tolist()
        line["devices"] = device_text()
        if line["devices"] not in self.devices[-1:]:
            self.devices.append(line["devices"])
        self._file.write(_as_text(line))
        self._file.flush()
        self._show(line)

    def pause_clock(self) -> None:
        """Excludes the time since the last record, that of a checkpoint, from the training time."""
        self._last_time = time.perf_counter()

    def _shown(self, line: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Labels and values of the metrics in `SHOWN` that the line has."""
        return [(label, f"{line[name]:.3f}") for name, label in self._labels.items() if name in line]

    def _show(self, line: Mapping[str, Any]) -> None:
        left = (self._total - self._step) / line["steps_per_second"]
        rate = f"{line['steps_per_second']:.1f} steps/s"
        if self._live:
            self._live.update(self._panel(line, f"{rate}, {duration(left)} left"), refresh=True)
        elif time.perf_counter() - self._last_plain >= PLAIN_LINE_SECONDS or self._step == self._total:
            self._last_plain = time.perf_counter()
            shown = "  ".join(f"{label} {value}" for label, value in self._shown(line))
            self._console.print(
                f"{self._title}  step {self._step}/{self._total}  {rate}  {duration(left)} left  {shown}",
                soft_wrap=True,
                highlight=False,
                markup=False,
            )

    def _panel(self, line: Mapping[str, Any], pace: str) -> Panel:
        grid = Table.grid(padding=(0, 2))
        grid.add_row("step", f"{self._step} / {self._total}", ProgressBar(self._total, self._step, width=30), pace)
        shown = self._shown(line)
        for left, right in itertools.zip_longest(shown[::2], shown[1::2], fillvalue=("", "")):
            grid.add_row(*map(Text, (*left, *right)))
        return Panel(grid, title=Text(self._title), expand=False)


def plainly(console: Console) -> Callable[[str], None]:
    """Prints a text as it is, in one line however long it is."""
    return functools.partial(console.print, soft_wrap=True, markup=False, highlight=False)


def read_metrics(path: pathlib.Path, say: Callable[[str], None] = print) -> list[dict[str, Any]]:
    """Lines of a `metrics.jsonl` that are good, in order.

    Args:
      path: the file; none has no lines.
      say: receives a message for each line that is torn, was edited or does not belong there, and for missing ones.
    """
    lines, step, told = [], 0, False
    rows = _parsed(path)
    for place, (number, line) in enumerate(rows):
        if isinstance(line, str):
            say(f"{path}, line {number}: {line}: left out")
            told = True
            continue
        since = line.get("since", step)  # Lines of earlier versions do not tell it.
        follow = [later for _, later in rows[place + 1 :] if isinstance(later, dict)] if since != step else []
        if line["step"] <= step or any(later.get("since") == step for later in follow):
            say(f"{path}, line {number}: step {line['step']} has no place after step {step}: left out")
            continue
        if since != step and not told:
            say(f"{path}, line {number}: the lines of the steps from {step} to {since} are missing")
        lines.append(line)
        step, told = line["step"], False
    return lines


def _parsed(path: pathlib.Path) -> list[tuple[int, dict[str, Any] | str]]:
    """The lines of a file by number, or what is wrong with them."""
    texts = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [(number, _checked(text)) for number, text in enumerate(texts, start=1)]


def _checked(text: bytes) -> dict[str, Any] | str:
    """A line as it was written, or what is wrong with it; lines of earlier versions have no checksum."""
    if not text.endswith(b"\n"):
        return "it is torn"
    try:
        line = loads_finite(text)
        digest = line.pop("sha256", None)
        if digest is not None and digest != _digest(line):
            return "its checksum is another"
        for key in ("step", "since"):
            if not isinstance(line.get(key, 0), int):
                return f"{key}={line[key]!r} is no number of steps"
        timed = "step" in line and isinstance(line.get("seconds"), int | float)
        return line if timed else "it has no step and seconds"
    except (ValueError, AttributeError, TypeError) as error:
        return str(error)


def _as_text(line: dict[str, Any]) -> str:
    return json.dumps(line | {"sha256": _digest(line)}) + "\n"


def _digest(line: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(line).encode()).hexdigest()[:16]


def duration(seconds: float) -> str:
    """A time as people read it: `m:ss`, or `h:mm:ss`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
