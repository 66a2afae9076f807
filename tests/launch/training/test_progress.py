import io
import json
import time

import numpy as np
import pytest
from rich.console import Console

from launch.training import progress


def metrics(value):
    scalars = {name: np.float32(value) for name in (*progress.SHOWN, "cost")}
    return scalars | {"genome": np.zeros(2, np.int32)}


def recorder(path, first_step=0, *, terminal=False):
    console = Console(file=io.StringIO(), width=100, force_terminal=terminal)
    return progress.Recorder(
        path, title="run", quality="accuracy", first_step=first_step, total_steps=40, console=console
    ), console


def test_lines_are_means_over_steps(tmp_path):
    path = tmp_path / "metrics.jsonl"
    record, _ = recorder(path)
    with record:
        time.sleep(0.002)
        record.record([metrics(1), metrics(3)], np.full((2, 3), 1 / 3))
        time.sleep(0.002)
        record.record([metrics(5)], np.eye(3)[:2])
    first, second = progress.read_metrics(path)
    assert (first["step"], first["loss"], second["step"], second["loss"]) == (2, 2.0, 3, 5.0)
    assert "genome" not in first
    assert second["policy"] == [[1, 0, 0], [0, 1, 0]]
    assert 0 < first["seconds"] < second["seconds"]
    assert record.seconds == pytest.approx(second["seconds"], abs=1e-3)


def test_resuming_drops_what_comes_after_the_checkpoint_and_keeps_the_time(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": step, "seconds": 10.0 * step} for step in (2, 4, 6)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 8, "sec')
    record, _ = recorder(path, first_step=4)
    with record:
        assert record.seconds == 40
        time.sleep(0.002)
        record.record([metrics(1), metrics(1)], np.ones((1, 1)))
    assert [line["step"] for line in progress.read_metrics(path)] == [2, 4, 6]
    assert progress.read_metrics(path)[-1]["seconds"] > 40


def test_plain_lines_where_there_is_no_terminal(tmp_path):
    record, console = recorder(tmp_path / "m")
    with record:
        for _ in range(40):
            record.record([metrics(0.25)], np.ones((1, 1)))
    lines = console.file.getvalue().splitlines()
    assert len(lines) == 2  # the first and the last: no more than one in ten seconds
    for text in ("step 40/40", "steps/s", "left", "train accuracy 0.250", "cost / target 0.250", "entropy", "reward"):
        assert text in lines[1]


def test_a_live_panel_on_a_terminal(tmp_path):
    record, console = recorder(tmp_path / "m", terminal=True)
    with record:
        record.record([metrics(0.5)], np.ones((1, 1)))
    shown = console.file.getvalue()
    for text in ("run", "1 / 40", "steps/s", "validation accuracy", "cost / target", "entropy", "reward", "0.500"):
        assert text in shown


def test_durations():
    assert [progress.duration(s) for s in (5, 65, 3725)] == ["0:05", "1:05", "1:02:05"]
