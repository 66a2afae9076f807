import fcntl
import os
import signal
import subprocess
import sys

import pytest

from launch import one_writer
from launch.one_writer import LOCK, BusyError, only_writer

HOLD = """
import pathlib, sys, time
from launch.one_writer import only_writer
with only_writer(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_writer_is_refused_by_name_and_a_killed_one_is_followed(tmp_path):
    directory = tmp_path / "new" / "run"
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(directory)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    busy = rf"run is being written to by process {process.pid} on \S+ since .*: wait"
    with pytest.raises(BusyError, match=busy), only_writer(directory):
        pytest.fail("two writers")
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    notices = []
    with only_writer(directory, notices.append):
        (notice,) = notices
        assert f"going on after process {process.pid} on " in notice and notice.endswith("which was killed")
        assert f"process {os.getpid()} on" in (directory / LOCK).read_text()
    with only_writer(directory, pytest.fail):  # after a proper end there is nothing to tell
        pass
    assert list(directory.iterdir()) == []


def test_a_lock_that_its_writer_removed_meanwhile_is_not_taken_for_the_lock(tmp_path, monkeypatch):
    """Between opening and locking, the writer before ends and another one begins."""
    gone, lock, begun = [], one_writer.lock, []

    def late(file, busy):
        if not gone:
            gone.append((tmp_path / LOCK).unlink())
            begun.append((tmp_path / LOCK).open("a+"))
            fcntl.flock(begun[0], fcntl.LOCK_EX)
        return lock(file, busy)

    monkeypatch.setattr(one_writer, "lock", late)
    with pytest.raises(BusyError, match="is being written to by another process"), only_writer(tmp_path):
        pytest.fail("two writers")
    begun[0].close()


def test_a_lock_ends_with_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), only_writer(tmp_path):
        raise ZeroDivisionError
    with only_writer(tmp_path, pytest.fail):
        pass


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(one_writer.fcntl, "flock", refuse)
    notices = []
    with only_writer(tmp_path, notices.append):
        assert "without locks: see to it that only one process writes to it" in notices[0]


@pytest.mark.parametrize("place", ["run", "run/uniform-int4"])
def test_a_run_and_its_baselines_have_one_writer(tiny_config, run_experiment, tmp_path, place):
    """Refused before anything of it is read or written."""
    tiny_config.baselines = ("int4",)
    (tmp_path / place).mkdir(parents=True)
    with (tmp_path / place / LOCK).open("a+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(BusyError, match=rf"{place} is being written to by another process"):
            run_experiment(tiny_config)
    assert not (tmp_path / place / "config.json").exists()
