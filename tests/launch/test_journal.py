import json
import subprocess
import sys

import pytest

from launch.journal import Journal, JournalError, read_journal
from launch.one_writer import BusyError

HEAD = {"kind": "float"}
ENTRIES = [{"genome": [0, number], "accuracy": number / 8} for number in range(5)]


def kept(path, entries, head=HEAD):
    with Journal(path, head, option="--workdir", say=pytest.fail) as found:
        for entry in entries:
            found.append(entry)
    return path.read_text().splitlines(keepends=True)


def test_entries_go_on_where_they_stopped(tmp_path):
    path = tmp_path / "new" / "journal.jsonl"
    kept(path, ENTRIES[:2])
    path.write_text(path.read_text() + '{"genome": [1')
    notices = []
    with Journal(path, HEAD, option="--workdir", say=notices.append) as again:
        assert again.entries == ENTRIES[:2]
        again.append(ENTRIES[2])
    assert notices == [f"{path}, line 4: it is torn"]
    assert list(path.parent.iterdir()) == [path]
    assert read_journal(path) == (HEAD, ENTRIES[:3])


def test_damage_and_entries_of_something_else_are_told(tmp_path):
    path = tmp_path / "journal.jsonl"
    whole = "".join(kept(path, [{"accuracy": 0.5}, {"accuracy": 0.75}]))
    with pytest.raises(JournalError, match=r"is of .*'float'.*, not of .*quantized.*: give another --out"):
        Journal(path, {"kind": "quantized"}, option="--out")
    with pytest.raises(JournalError, match=r"is of .*'float'.*, not of .*quantized"):
        read_journal(path, {"kind": "quantized"})
    assert path.read_text() == whole
    for damaged, told in (
        (whole.replace("0.5", "0.6"), "line 2: its checksum is another"),
        (whole + "7\n", "line 4"),
        (whole + '{"accuracy": 1}\n', "line 4: 'sha256'"),
        ("not JSON\n", "line 1"),
        ("[1]\n", "line 1"),
        ("", "line 1"),
    ):
        path.write_text(damaged)
        with pytest.raises(JournalError, match=rf"journal.jsonl, {told}"):
            read_journal(path)
    with pytest.raises(JournalError, match=r"cannot read .*nothing.jsonl"):
        read_journal(tmp_path / "nothing.jsonl")


def torn(lines, others):
    return [*lines[:2], lines[2][:20], *lines[3:]]  # the rest of it and its end are gone, so it swallows the next one


CHANGES = {
    "torn": (torn, {1, 2}, "line 3: "),
    "foreign": (lambda lines, others: [*lines[:3], others[2], *lines[3:]], set(), "line 4: its checksum is another"),
    "text": (lambda lines, others: [*lines[:3], "disk full\n", *lines[3:]], set(), "line 4: "),
    "removed": (lambda lines, others: [*lines[:3], *lines[4:]], {2}, "entries 2: their lines are missing"),
    "doubled": (lambda lines, others: [*lines[:4], *lines[3:]], set(), "line 5: it is entry 2 again"),
    "edited": (
        lambda lines, others: [lines[0], lines[1], lines[2].replace("0.125", "0.625"), *lines[3:]],
        {1},
        "line 3",
    ),
    "not finite": (
        lambda lines, others: [*lines[:2], lines[2].replace("0.125", "NaN"), *lines[3:]],
        {1},
        "line 3: NaN is",
    ),
    "too large": (
        lambda lines, others: [*lines[:2], lines[2].replace("0.125", "1e999"), *lines[3:]],
        {1},
        "line 3: 1e999",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_happened_to_a_line_is_told_and_the_others_are_kept(tmp_path, change):
    do, lost, told = CHANGES[change]
    path = tmp_path / "journal.jsonl"
    others = kept(tmp_path / "other.jsonl", ENTRIES, {"kind": "quantized"})
    path.write_text("".join(do(kept(path, ENTRIES), others)))
    with pytest.raises(JournalError, match=rf"journal\.jsonl, {told}.*: the command that wrote the file makes it good"):
        read_journal(path, HEAD)
    with pytest.raises(JournalError, match=told):
        Journal(path, HEAD, option="--workdir")
    notices = []
    with Journal(path, HEAD, option="--workdir", say=notices.append) as found:
        assert notices[0].startswith(f"{path}, {told}")
        assert found.numbered == {number: entry for number, entry in enumerate(ENTRIES) if number not in lost}
        for number in sorted(lost):
            found.append(ENTRIES[number])
    assert read_journal(path, HEAD) == (HEAD, ENTRIES)
    assert (tmp_path / "journal.jsonl.damaged").exists() == (change != "removed")
    with Journal(path, HEAD, option="--workdir", say=pytest.fail) as found:  # nothing is told twice
        assert found.entries == ENTRIES


def test_lines_that_moved_are_put_in_order(tmp_path):
    path = tmp_path / "journal.jsonl"
    head, *lines = kept(path, ENTRIES)
    path.write_text("".join([head, *lines[::-1]]))
    assert read_journal(path) == (HEAD, ENTRIES)


def test_journals_of_earlier_versions_are_read_and_go_on(tmp_path):
    """Their checksums are of the entries alone."""
    path = tmp_path / "journal.jsonl"
    path.write_text('{"kind": "float"}\n{"genome": [0, 0], "accuracy": 0.5, "sha256": "4d62d838f837f97e"}\n')
    with Journal(path, HEAD, option="--workdir", say=pytest.fail) as found:
        found.append(ENTRIES[1])
    assert read_journal(path) == (HEAD, [{"genome": [0, 0], "accuracy": 0.5}, ENTRIES[1]])


def test_what_is_not_finite_is_not_written(tmp_path):
    path = tmp_path / "journal.jsonl"
    with Journal(path, HEAD, option="--workdir") as found, pytest.raises(JournalError, match="is not finite"):
        found.append({"accuracy": float("nan")})
    assert read_journal(path) == (HEAD, [])


def test_a_killed_head_is_written_again_and_a_second_writer_refused(tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_text('{"kin')
    code = "import sys, pathlib; from launch.journal import Journal; Journal(pathlib.Path(sys.argv[1]), {}, option='')"
    with Journal(path, HEAD, option="--workdir", say=pytest.fail):
        with pytest.raises(BusyError, match=r"journal\.jsonl is being written to by another process"):
            Journal(path, HEAD, option="--workdir")
        other = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=False)
        assert "BusyError" in other.stderr
    assert json.loads(path.read_text()) == HEAD
