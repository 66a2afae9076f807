"""Checkpoints: what is damage, what is another model, and that a reader changes nothing."""

import json
import shutil

import jax
import jax.numpy as jnp
import pytest

from launch.training.checkpoints import CheckpointError, Checkpoints, state_digest

STATE = {"w": jnp.arange(4.0), "key": jax.random.key(0)}


@pytest.fixture
def run(tmp_path):
    """The directory of a run with checkpoints of two steps."""
    checkpoints = Checkpoints(tmp_path / "run" / "c")
    checkpoints.save(1, STATE)
    checkpoints.save(2, STATE | {"w": jnp.arange(4.0) + 1})
    return tmp_path / "run"


def flip(checkpoint):
    """Flips one bit of one of its files."""
    path = next(p for p in sorted(checkpoint.rglob("*")) if p.is_file() and p.parent.name == "d")
    flipped = bytearray(path.read_bytes())
    flipped[len(flipped) // 2] ^= 1
    path.write_bytes(flipped)


def names(run):
    return sorted(path.name for path in (run / "c").iterdir())


def contents(run):
    return {path: path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}


DAMAGES = {
    "bit": (flip, "is not as it was written"),
    "file": (lambda checkpoint: (checkpoint / "default" / "_METADATA").unlink(), "_METADATA is not as it was written"),
    "torn digests": (lambda c: (c / "sha256.json").write_text('{"def'), "sha256.json is not as it was written"),
    "no digest": (lambda c: (c / "sha256.json").write_text("{}"), "sha256.json is not as it was written"),
    "list": (lambda c: (c / "sha256.json").write_text("[1]"), "sha256.json is not as it was written"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_told_and_only_who_goes_on_moves_it(run, damage):
    do, told = DAMAGES[damage]
    do(run / "c" / "2")
    for read_only, left in ((True, ["1", "2"]), (False, ["1", "damaged-2"])):
        notices = []
        step, state = Checkpoints(run / "c", read_only=read_only).restore(STATE, say=notices.append)
        assert (step, state_digest(state)) == (1, state_digest(STATE))
        (notice,) = notices
        assert "checkpoint of step 2 is damaged (" in notice and told in notice and "trying the one before" in notice
        assert names(run) == left


def test_all_damaged_stops_again_and_again_and_changes_nothing(run):
    copy = shutil.copytree(run, run.parent / "copy")
    for step in ("1", "2"):
        flip(run / "c" / step)
    before = contents(run)
    for read_only in (True, False, False, False):
        with pytest.raises(CheckpointError, match=r"no checkpoint in .* can be read \(steps 2, 1 are damaged\)"):
            Checkpoints(run / "c", read_only=read_only).restore(STATE, say=lambda _: None)
        assert contents(run) == before
    shutil.copytree(copy / "c", run / "c", dirs_exist_ok=True)  # the person decides
    assert Checkpoints(run / "c").restore(STATE, say=pytest.fail)[0] == 2


def test_those_that_earlier_versions_set_aside_are_not_forgotten(run):
    shutil.rmtree(run / "c" / "1")
    (run / "c" / "2").rename(run / "c" / "damaged-2")
    with pytest.raises(CheckpointError, match=r"\(steps 2 are damaged\)"):
        Checkpoints(run / "c").restore(STATE)


def test_without_digests_it_is_read_and_told_and_never_called_damaged(run):
    (run / "c" / "2" / "sha256.json").unlink()
    notices = []
    assert Checkpoints(run / "c").restore(STATE, say=notices.append)[0] == 2
    assert notices == ["checkpoint of step 2 has no digests, as those of earlier versions: it is not checked"]
    flip(run / "c" / "2")
    (run / "c" / "2" / "default" / "_METADATA").write_text("{")
    with pytest.raises(CheckpointError, match=r"2 has no digests that would tell damage, and cannot be read: "):
        Checkpoints(run / "c").restore(STATE, say=notices.append)
    assert names(run) == ["1", "2"]


def test_what_the_file_system_refuses_is_no_damage(run, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.read_bytes", refuse)
    with pytest.raises(CheckpointError, match=r"cannot read .*2: Permission denied"):
        Checkpoints(run / "c").restore(STATE, say=pytest.fail)
    monkeypatch.undo()
    monkeypatch.setattr("launch.training.checkpoints._read", lambda *_, **__: refuse(None))
    with pytest.raises(CheckpointError, match=r"2 is as it was written, but .*Permission denied\. Nothing was changed"):
        Checkpoints(run / "c").restore(STATE, say=pytest.fail)
    assert names(run) == ["1", "2"]


def test_a_changed_model_is_told_with_its_shapes_and_damages_nothing(tmp_path):
    def state(width, depth=1, dtype=jnp.float32):
        params = {f"layer{i}": {"kernel": jnp.ones((3, width), dtype)} for i in range(depth)}
        return {"batch_stats": {"mean": jnp.ones(width)}, "params": params, "key": jax.random.key(0)}

    for read_only in (True, False):
        checkpoints = Checkpoints(tmp_path / "run" / "c")
        checkpoints.save(1, state(4))
        attempt = Checkpoints(tmp_path / "run" / "c", read_only=read_only)
        for changed, told in (
            (
                state(5),
                r"params/layer0/kernel is \(3, 4\) in the checkpoint and \(3, 5\) in the model; batch_stats/mean",
            ),
            (state(4, depth=2), r"params/layer1/kernel is absent in the checkpoint and \(3, 4\) in the model\. The"),
            (state(4, dtype=jnp.bfloat16), r"layer0/kernel is float32 in the checkpoint and bfloat16 in the model\. T"),
            (state(4) | {"gained": jnp.ones(())}, r"gained is absent in the checkpoint and \(\) in the model\. The"),
            (state(5, depth=9), r"and 7 more\."),
        ):
            with pytest.raises(CheckpointError, match=rf"not that of the run in .*: these shapes differ: .*{told}"):
                attempt.restore(changed, say=pytest.fail)
        assert names(tmp_path / "run") == ["1"]
        assert attempt.restore(state(4))[0] == 1
    nothing = tmp_path / "nothing"
    assert Checkpoints(nothing, read_only=True).restore(state(4)) is None
    assert not nothing.exists()


def test_digests_are_written_before_a_checkpoint_is_in_its_place(run, monkeypatch):
    """A process killed before that leaves what the next one removes."""

    def killed(path, target):
        assert json.loads((path / "sha256.json").read_text())
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.rename", killed)
        with pytest.raises(KeyboardInterrupt):
            Checkpoints(run / "c").save(3, STATE)
    assert names(run) == ["1", "2", "unfinished-3"]
    assert Checkpoints(run / "c").restore(STATE)[0] == 2
    for step in (4, 5):
        Checkpoints(run / "c").save(step, STATE)
    assert names(run) == ["2", "4", "5"]  # the newest three


def test_digests_tell_states_apart():
    assert state_digest(STATE) == state_digest(dict(STATE))
    for other in (STATE | {"w": jnp.arange(4.0).at[0].set(1e-45)}, STATE | {"key": jax.random.key(1)}):
        assert state_digest(other) != state_digest(STATE)
