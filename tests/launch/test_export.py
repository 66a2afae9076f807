import dataclasses
import json
import math
import subprocess
import sys

import numpy as np
import pytest

import launch.runtimes
from aqt_like.frozen_network import FrozenNetwork
from launch import export
from launch.reports import export_card
from launch.runtimes import exported_network, network_check, self_check
from launch.training import finished
from launch.training.settings import ConfigError


@pytest.fixture
def without_onnx(monkeypatch):
    """As if onnx were not installed."""
    for name in ("onnx_graphs", "onnx_formats", "onnx_builder", "onnx_operations"):
        monkeypatch.delitem(sys.modules, f"launch.runtimes.{name}", raising=False)
        monkeypatch.delattr(launch.runtimes, name, raising=False)
    monkeypatch.setitem(sys.modules, "onnx", None)


def test_a_run_is_exported_and_checked_in_every_runtime(uninterrupted, tmp_path, capsys):
    pytest.importorskip("onnxruntime", reason="needs requirements-devices.txt")
    pytest.importorskip("onnx", reason="needs requirements-devices.txt")
    out = tmp_path / "export"
    export.main([str(uninterrupted), f"--out={out}"])
    told = capsys.readouterr().out
    document = json.loads((out / "export.json").read_text())
    assert set(document["files"]) == {"model.onnx", "model.stablehlo", "network.safetensors"}
    summary = json.loads((uninterrupted / "summary.json").read_text())
    for name, file in document["files"].items():
        assert (out / name).stat().st_size == file["bytes"]
        for check in file["checks"]:
            assert check["differing"] == []
            assert check["examples"] == (100 if check["batch"] == 1 else 360)
            if check["batch"] > 1:
                assert check["accuracy"] == summary["accuracy"]
    assert "model.onnx in onnxruntime" in told
    assert "model.stablehlo in jax" in told
    layers = FrozenNetwork.load(out / "network.safetensors").layers
    assert document["layers"].keys() == layers.keys()
    assert document["layers"]["stem"]["input"]["scale"] == layers["stem"].input_scale
    assert document["layers"]["stem"]["input"]["in_onnx"]
    assert document["output"]["class_names"] == list("0123456789")

    graph = document["files"]["model.onnx"]
    kernels = [layer.weights.shape for layer in layers.values()]
    assert graph["bytes_in_float32"] > 4 * sum(map(math.prod, kernels))
    assert [speed["batch"] for speed in graph["speed"]] == [1] * len(self_check.ONNX_RUNTIMES)
    [card] = export_card.cards(tmp_path)
    for speed in graph["speed"]:
        assert speed["milliseconds"] > 0
        assert f"<td>{speed['runtime']}</td>" in card
    assert " products</td>" in card
    assert export_card.cards(out) == []

    images = np.zeros((3, 8, 8, 1), np.uint8)
    images[1, 2:6, 3:5] = 255
    np.save(tmp_path / "images.npy", images)
    answer = subprocess.run(
        [sys.executable, out / "run.py", tmp_path / "images.npy"], capture_output=True, text=True, check=True
    )
    lines = [line.split() for line in answer.stdout.splitlines()]
    assert len(lines) == 3
    normal = document["input"]["normalization"]
    x = (images - np.float32(normal["mean"])) / np.float32(normal["deviation"])
    expected = self_check.with_jax(out / "model.stablehlo").run(x)
    np.testing.assert_allclose(np.float32([line[1:] for line in lines]), expected, atol=2e-4)
    assert [line[0] for line in lines] == [str(best) for best in expected.argmax(1)]


def test_stored_activations_are_not_exported_to_onnx(uninterrupted):
    experiment = finished.read_experiment(uninterrupted)
    network = dataclasses.replace(finished.read_network(uninterrupted, experiment), activations="bfloat16")
    subject, form = exported_network.Subject(uninterrupted, experiment, network, 1), exported_network.FORMS["exact"]
    with pytest.raises(ConfigError, match=r"activations in bfloat16, .* expected --to=stablehlo,packed"):
        exported_network.make(subject, form, ["onnx"], pytest.fail)


def test_a_report_refuses_what_is_no_description_of_files(tmp_path):
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "export.json").write_text('{"files": []}')
    with pytest.raises(ValueError, match=r"export.json is not of launch.export"):
        export_card.cards(tmp_path)


def test_a_file_with_other_answers_is_kept_as_failed(uninterrupted, tmp_path, monkeypatch, capsys):
    def other(file):
        runner = self_check.with_jax(file)
        return runner._replace(run=lambda x: runner.run(x)[:, ::-1])

    monkeypatch.setitem(self_check.RUNTIMES, ".stablehlo", {"jax": other})
    with pytest.raises(SystemExit, match=r"model.stablehlo: more than 0.1% of the decisions differ"):
        export.main([str(uninterrupted), "--to=stablehlo", "--batch=360", f"--out={tmp_path}"])
    assert [path.name for path in tmp_path.glob("model*")] == ["model.stablehlo.failed"]
    assert "margin" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to=onnx,tflite"], "--to=onnx,tflite: tflite: expected some of onnx,stablehlo,packed"),
        (["--to=packed,packed"], "expected each target once"),
        (["--form=fast", "--to=stablehlo"], "--to=stablehlo: stablehlo: expected some of onnx with --form=fast"),
        (["--tolerance=1"], "--tolerance=1: expected with --form=fast only"),
        (["--form=fast", "--tolerance=nan"], "--tolerance=nan: expected points of quality, 0 to 100"),
        (["--batch=0"], "--batch=0: expected a number of examples, or any"),
    ],
)
def test_arguments_are_checked(arguments, message, uninterrupted, tmp_path):
    with pytest.raises(SystemExit, match=message):
        export.main([str(uninterrupted), *arguments, f"--out={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists()


def test_files_of_pixels_take_images_as_they_are(uninterrupted, tmp_path, capsys):
    pytest.importorskip("onnx", reason="needs requirements-devices.txt")
    export.main([str(uninterrupted), "--to=onnx,stablehlo", "--input=uint8", f"--out={tmp_path}"])
    assert capsys.readouterr().out.count("0 of 360 decisions differ") == 3
    about = json.loads((tmp_path / "export.json").read_text())["input"]
    assert (about["type"], about["normalization"]) == ("uint8", "in the file")
    np.save(tmp_path / "images.npy", np.zeros((120, 8, 8, 1)))
    answer = subprocess.run(
        [sys.executable, tmp_path / "run.py", tmp_path / "images.npy"], capture_output=True, text=True, check=False
    )
    assert (answer.returncode, answer.stdout) == (1, "")
    assert "has float64: expected uint8, images as they are" in answer.stderr


def test_inputs_that_are_no_images_have_no_pixels():
    network = FrozenNetwork({}, {}, {})
    with pytest.raises(ConfigError, match=r"--input=uint8: the inputs of the network are as the data have them"):
        exported_network.read_pixels(network)
    pixels = exported_network.Pixels(np.float32([100, 120]), np.float32([50, 60]))
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 2), np.uint8)
    np.testing.assert_array_equal(pixels.stored(pixels.normalized(images)), images)
    for inputs in (pixels.normalized(images) + np.float32(0.01), np.full((1, 2), 9, np.float32)):
        with pytest.raises(ConfigError, match=r"--input=uint8: the examples are not normalised images"):
            pixels.stored(inputs)


def test_the_fast_form_tells_what_it_loses(uninterrupted, tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnx", reason="needs requirements-devices.txt")
    arguments = [str(uninterrupted), "--form=fast", "--batch=120", f"--out={tmp_path}"]
    export.main([*arguments, "--tolerance=100"])
    assert " points)" in capsys.readouterr().out
    document = json.loads((tmp_path / "export.json").read_text())
    [file] = document["files"].values()
    assert (document["form"], list(document["files"])) == ("fast", ["model.onnx"])
    for check in file["checks"]:
        assert check["integer_kernels"][0] >= 3
        assert check["largest_difference"] > 1e-4  # another network
    monkeypatch.setattr(network_check, "lost_quality", lambda told, quality: 0.003)
    with pytest.raises(SystemExit, match=r"accuracy is 0.30 points lower .*: expected at most --tolerance=0.2"):
        export.main(arguments)
    assert [path.name for path in tmp_path.glob("model*")] == ["model.onnx.failed"]


def test_a_refusal_leaves_what_is_there(uninterrupted, tmp_path, monkeypatch):
    operations = pytest.importorskip("launch.runtimes.onnx_operations", reason="needs requirements-devices.txt")
    monkeypatch.delitem(operations.OPERATIONS, "dot_general")
    earlier = tmp_path / "model.onnx"
    earlier.write_text("earlier")
    with pytest.raises(SystemExit, match=r"classifier: dot_general has no counterpart in ONNX here"):
        export.main([str(uninterrupted), f"--out={tmp_path}"])
    with pytest.raises(SystemExit, match=r"classifier: dot_general has no counterpart in ONNX here"):
        export.main([str(uninterrupted), f"--out={tmp_path / 'new'}"])
    assert list(tmp_path.iterdir()) == [earlier]
    assert earlier.read_text() == "earlier"


def test_a_missing_package_is_told_before_anything_is_written(uninterrupted, tmp_path, without_onnx):
    with pytest.raises(SystemExit, match=r"--to=onnx needs onnx: pip install -r requirements-devices.txt"):
        export.main([str(uninterrupted), f"--out={tmp_path / 'out'}"])
    with pytest.raises(SystemExit, match="not that of the run"):
        export.main([str(uninterrupted), f"--out={uninterrupted}"])
    assert not (tmp_path / "out").exists()
