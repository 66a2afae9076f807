import pytest

from launch.journal import Journal, JournalError, read_journal

HEAD = {"kind": "float"}


def kept(path, entries):
    with Journal(path, HEAD, option="--workdir") as found:
        for entry in entries:
            found.append(entry)


def test_entries_go_on_where_they_stopped(tmp_path):
    path = tmp_path / "new" / "journal.jsonl"
    first = [{"genome": [0, 1], "accuracy": 0.5}, {"genome": [1, 2], "accuracy": 0.25}]
    kept(path, first)
    path.write_text(path.read_text() + '{"genome": [1')
    with Journal(path, HEAD, option="--workdir") as again:
        assert again.entries == first
        again.append({"genome": [3, 3], "accuracy": 1.0})
    assert read_journal(path) == (HEAD, [*first, {"genome": [3, 3], "accuracy": 1.0}])


def test_damage_and_entries_of_something_else_are_told(tmp_path):
    path = tmp_path / "journal.jsonl"
    kept(path, [{"accuracy": 0.5}, {"accuracy": 0.75}])
    whole = path.read_text()
    with pytest.raises(JournalError, match=r"is of .*'float'.*, not of .*quantized.*: give another --out"):
        Journal(path, {"kind": "quantized"}, option="--out")
    for damaged, told in (
        (whole.replace("0.5", "0.6"), "line 2: its checksum is another"),
        (whole + "7\n", "line 4"),
        (whole + '{"accuracy": 1}\n', "line 4: 'sha256'"),
        ("not JSON\n", "line 1"),
        ("", "line 1"),
    ):
        path.write_text(damaged)
        with pytest.raises(JournalError, match=rf"journal.jsonl, {told}"):
            read_journal(path)
    with pytest.raises(JournalError, match=r"cannot read .*nothing.jsonl"):
        read_journal(tmp_path / "nothing.jsonl")
