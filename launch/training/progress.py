"""Progress of a run: a live panel or plain lines on the console, and metrics as JSON lines in a file."""

import itertools
import json
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

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

    Each line has the mean of each metric over the steps since the previous line, `step` (completed steps), `seconds`
    (training time, over all resumptions), `steps_per_second`, and `policy`, the probabilities `[D, Kmax]`.
    """

    def __init__(
        self, path: pathlib.Path, *, title: str, quality: str, first_step: int, total_steps: int, console: Console
    ) -> None:
        self._labels = {name: label.format(quality=quality) for name, label in SHOWN.items()}
        self._title, self._total, self._step, self._console = title, total_steps, first_step, console
        earlier = [line for line in read_metrics(path) if line["step"] <= first_step]
        path.write_text("".join(json.dumps(line) + "\n" for line in earlier))
        self._file = path.open("a")
        self._seconds = earlier[-1]["seconds"] if earlier else 0.0
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
        self._step += len(steps)
        line: dict[str, Any] = {
            "step": self._step,
            "seconds": round(self._seconds, 3),
            "steps_per_second": round(len(steps) / spent, 3),
        }
        for name in steps[0]:
            if np.ndim(steps[0][name]) == 0:
                line[name] = float(np.mean([metrics[name] for metrics in steps]))
        line["policy"] = np.round(policy, 4).tolist()
        self._file.write(json.dumps(line) + "\n")
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


def read_metrics(path: pathlib.Path) -> list[dict[str, Any]]:
    """Lines of a `metrics.jsonl`, without an incomplete last line, which a killed process may leave."""
    lines = []
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def duration(seconds: float) -> str:
    """A time as people read it: `m:ss`, or `h:mm:ss`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
