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


def written(path, steps=4):
    record, _ = recorder(path)
    with record:
        for value in range(steps):
            time.sleep(0.001)
            record.record([metrics(value), metrics(value)], np.ones((1, 1)))
    return path.read_text().splitlines(keepends=True)


def foreign(lines):
    """A good line of a longer run."""
    line = {"step": 900, "since": 898, "seconds": 1.0}
    return progress._as_text(line)


CHANGES = {
    "torn": (lambda lines: [lines[0], lines[1][:9] + "\n", *lines[2:]], [2, 6, 8], "line 2: "),
    "swallowed": (lambda lines: [lines[0], lines[1][:9], *lines[2:]], [2, 8], "line 2: "),
    "number": (lambda lines: [lines[0], "3\n", *lines[1:]], [2, 4, 6, 8], "line 2: "),
    "binary": (lambda lines: [lines[0], "\x00\x01\n", *lines[1:]], [2, 4, 6, 8], "line 2: "),
    "foreign": (lambda lines: [*lines[:2], foreign(lines), *lines[2:]], [2, 4, 6, 8], "line 3: step 900 has no place"),
    "doubled": (lambda lines: [*lines[:2], *lines[1:]], [2, 4, 6, 8], "line 3: step 4 has no place after step 4"),
    "doubled last": (lambda lines: [*lines, lines[3]], [2, 4, 6, 8], "line 5: step 8 has no place after step 8"),
    "edited": (
        lambda lines: [lines[0], lines[1].replace("1.0", "1.5"), *lines[2:]],
        [2, 6, 8],
        "line 2: its checksum is",
    ),
    "not finite": (
        lambda lines: [lines[0], '{"step": NaN}\n', *lines[2:]],
        [2, 6, 8],
        "line 2: NaN is no finite number",
    ),
    "other keys": (
        lambda lines: [lines[0], '{"step": 4}\n', *lines[2:]],
        [2, 6, 8],
        "line 2: it has no step and seconds",
    ),
    "text as step": (
        lambda lines: [lines[0], '{"step": "4"}\n', *lines[2:]],
        [2, 6, 8],
        "line 2: step='4' is no number",
    ),
    "removed": (
        lambda lines: [lines[0], *lines[2:]],
        [2, 6, 8],
        "line 2: the lines of the steps from 2 to 4 are missing",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_line_that_is_no_good_is_told_and_nothing_after_it_is_lost(tmp_path, change):
    do, left, told = CHANGES[change]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(do(written(path))))
    notices = []
    assert [line["step"] for line in progress.read_metrics(path, notices.append)] == left
    (notice,) = notices
    assert notice.startswith(f"{path}, {told}")
    record, console = recorder(path, first_step=8)
    record._file.close()
    assert told.split(":")[0] in console.file.getvalue().replace("\n", "")
    assert [line["step"] for line in progress.read_metrics(path, lambda _: None)] == left


def test_lines_that_are_missing_at_the_end_are_told(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(written(path)[:2]))
    record, console = recorder(path, first_step=8)
    record._file.close()
    assert f"{path}: the lines from step 4 to step 8 are missing, and their time" in console.file.getvalue()


def test_devices_are_kept_in_turn_and_a_change_is_told(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    written(path, steps=2)
    monkeypatch.setattr(progress, "device_text", lambda: "8 × cpu")
    record, console = recorder(path, first_step=4)
    assert record.devices == ["1 × cpu"]
    with record:
        time.sleep(0.001)
        record.record([metrics(1)], np.ones((1, 1)))
    assert record.devices == ["1 × cpu", "8 × cpu"]
    assert "run: goes on with 8 × cpu, after 1 × cpu: the bits of its result depend on it" in console.file.getvalue()


def test_lines_of_earlier_versions_have_no_checksum(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step, "seconds": 1.0}) + "\n" for step in (3, 6)))
    assert [line["step"] for line in progress.read_metrics(path, pytest.fail)] == [3, 6]


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
