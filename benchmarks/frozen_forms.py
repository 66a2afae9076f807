"""Frozen networks of finished runs in the forms in which programs hold them, and the size of their files.

    python -m benchmarks.frozen_forms DIR [DIR …]

A form is eager, jitted, jitted with the network as constants, or exported by `jax.export`. Each computes the logits and
the codes of all inputs on all test images, and is compared with the jitted form. The last form quantises the float
weights anew, with everything a constant, as programs did before networks were frozen. Writes
results/frozen_forms.json; ResNet-18 at int4, of which only the size matters, has random weights.

The stored figures are of these runs, and of the uniform-* below them:

    python -m launch.fliqs --config=fliqs_digits --workdir=D1 --config.formats=int_s --config.target_unit=int4 \\
        --config.target=1.15 --config.baselines="('int4','int8','bf16')"
    python -m launch.fliqs --config=fliqs_digits --workdir=D2 --config.formats=int2,int4 --config.policy=fixed \\
        --config.genome=int2 --config.target_unit=int4 --config.target=1 --config.baselines="()"
    python -m launch.fliqs --config=fliqs_digits --workdir=D3 --config.formats=fp_s --config.target_unit=e2m1 \\
        --config.target=1.3 --config.baselines="()"
    python -m launch.fliqs --config=fliqs_cifar10_resnet8 --workdir=D4 --config.data.data_dir=TFDS_DIR \\
        --config.baselines="('int4','bf16')"
"""

import argparse
import json
import pathlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import export

import aqt_like
from aqt_like import interception, numerics
from aqt_like.frozen_network import FrozenNetwork, Kernel
from aqt_like.layer_calls import is_layer_call, layer_input
from fliqs_jax import models
from fliqs_jax.search import quantized_variables
from launch.training import finished, trial_run
from launch.training.run_directory import NETWORK, SUMMARY

RESULTS = pathlib.Path(__file__).parent / "results" / "frozen_forms.json"
EXPORTED_BATCH = 250
ANEW = "quantised anew, constants"
Codes = dict[str, jax.Array]
Form = Callable[[np.ndarray], tuple[jax.Array, Codes]]


def forms(directory: pathlib.Path) -> tuple[dict[str, Form], Any]:
    """The forms of the network of a run, each `images -> (logits, codes of inputs)`, and the experiment."""
    experiment = finished.read_experiment(directory)
    search = experiment.search
    frozen = finished.variables_of(finished.read_network(directory, experiment), experiment)

    def apply(variables: dict[str, Any], x: jax.Array) -> tuple[jax.Array, Codes]:
        inputs: dict[str, jax.Array] = {}

        def record(call: Any, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
            if is_layer_call(context):
                inputs["/".join(context.module.path)] = layer_input(context.module, args, kwargs)
            return call(*args, **kwargs)

        with nn.intercept_methods(record):
            logits = interception.apply_quantized(search.model, variables, x, quantizer=search.quantizer)
        layers = {path: layer for path, layer in _flat(frozen["formats"]).items() if path in inputs}
        return logits, {
            path: numerics.round_to_grid(inputs[path] * (1 / layer.input_scale), layer.inputs)
            for path, layer in layers.items()
        }

    example = jax.ShapeDtypeStruct((EXPORTED_BATCH, *experiment.source.example.shape), experiment.source.example.dtype)
    exported = export.export(jax.jit(apply))(frozen, example)
    called = jax.jit(export.deserialize(exported.serialize()).call)
    state, genome = finished.read_weights(directory, experiment), finished.read_genome_of(directory, experiment)
    anew = quantized_variables(search, state, jnp.asarray(genome), True)
    jitted = jax.jit(apply)
    return {
        "jitted": lambda x: jitted(frozen, x),
        "eager": lambda x: apply(frozen, jnp.asarray(x)),
        "constants": jax.jit(lambda x: apply(frozen, x)),
        "exported": lambda x: called(frozen, x),
        ANEW: jax.jit(lambda x: apply(anew, x)),
    }, experiment


def _flat(collection: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Entries of layers by path."""
    found: dict[str, Any] = {}
    for name, inner in collection.items():
        below = f"{path}/{name}" if path else name
        found |= _flat(inner, below) if isinstance(inner, dict) else {below: inner}
    return found


def compare(directory: pathlib.Path) -> dict[str, Any]:
    """What differs between the forms, over all test images."""
    by_form, experiment = forms(directory)
    dataset = trial_run.open_data(experiment)
    summary = json.loads((directory / SUMMARY).read_text())
    logits: dict[str, list[np.ndarray]] = {name: [] for name in by_form}
    flipped, codes, labels = dict.fromkeys(by_form, 0), 0, []
    for batch in dataset.eval_batches("test", batch_size=EXPORTED_BATCH):
        real = batch["label"] >= 0
        labels.append(batch["label"][real])
        expected: Codes = {}
        for name, form in by_form.items():
            found, of_inputs = jax.device_get(form(batch["input"]))
            expected = expected or of_inputs
            logits[name].append(found[real])
            flipped[name] += sum(int((of_inputs[path][real] != expected[path][real]).sum()) for path in expected)
        codes += sum(values[real].size for values in expected.values())
    whole = {name: np.concatenate(parts) for name, parts in logits.items()}
    network = FrozenNetwork.load(directory / NETWORK)
    return {
        "run": directory.name,
        "network": summary["name"],
        "data": summary["config"]["data"]["name"],
        "images": len(whole["jitted"]),
        "input_codes": codes,
        "accuracy_of_summary": summary["accuracy"],
        "forms": {
            name: {
                "accuracy": float(np.mean(values.argmax(1) == np.concatenate(labels))),
                "input_codes_flipped": flipped[name],
                **_differences(values, whole["jitted"]),
            }
            for name, values in whole.items()
        },
        **_sizes(network, (directory / NETWORK).stat().st_size),
    }


def _differences(logits: np.ndarray, expected: np.ndarray) -> dict[str, Any]:
    """The largest difference of logits, and the images whose top-1 differs, each with its margin in the other form."""
    differing = np.flatnonzero(logits.argmax(1) != expected.argmax(1))
    ranked = np.sort(expected, axis=1)
    return {
        "largest_difference": float(np.abs(logits - expected).max()),
        "top1_differing": [{"image": int(i), "margin": float(ranked[i, -1] - ranked[i, -2])} for i in differing],
    }


def _sizes(network: FrozenNetwork, file_bytes: int) -> dict[str, Any]:
    return {"bytes": network.sizes(), "file_bytes": file_bytes, "float32_bytes": network.float32_bytes()}


def resnet18() -> dict[str, Any]:
    """The size of ResNet-18 at int4, with random weights."""
    model = models.create("resnet18", classes=1000)
    images = jax.random.normal(jax.random.key(0), (1, 64, 64, 3))
    variables = jax.jit(lambda x: model.init(jax.random.key(1), x, train=False))(images)
    network = aqt_like.quantize_model(model, variables, images, "int4", train=False)
    frozen = aqt_like.freeze(network, variables, images, train=False)
    path = RESULTS.with_name("resnet18.tmp.safetensors")
    frozen.save(path)
    size = path.stat().st_size
    path.unlink()
    assert all(isinstance(layer.weights, Kernel) for layer in frozen.layers.values())
    return {"network": "ResNet-18 int4", **_sizes(frozen, size)}


def markdown(document: dict[str, Any]) -> str:
    """Tables of docs/formats.md: the worst of the frozen forms, and sizes in bytes."""

    def cells(row: dict[str, Any], forms: list[dict[str, Any]]) -> list[str]:
        worst = [max(form[key] for form in forms) for key in ("largest_difference", "input_codes_flipped")]
        differing = max(len(form["top1_differing"]) for form in forms)
        codes = f"{worst[1]:,} of {row['input_codes']:,}" if worst[1] else "0"
        return [f"{worst[0]:.1e}", codes, f"{differing} of {row['images']:,}"]

    lines = [
        "| network | frozen: logits differ by | input codes | top-1 | quantised anew: logits | input codes | top-1 |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in document["runs"]:
        frozen = [form for name, form in row["forms"].items() if name != ANEW]
        told = [f"{row['network']}, {row['data']}", *cells(row, frozen), *cells(row, [row["forms"][ANEW]])]
        lines.append(f"| {' | '.join(told)} |")
    lines += ["", "| bytes | codes | scales | not quantised | file | file / float32 |", "|---|---|---|---|---|---|"]
    for row in [*document["runs"], document["resnet18"]]:
        sizes = (*row["bytes"].values(), row["file_bytes"])
        name = row["network"] + (f", {row['data']}" if "data" in row else "")
        share = row["file_bytes"] / row["float32_bytes"]
        lines.append(f"| {name} | {' | '.join(f'{size:,}' for size in sizes)} | {share:.3f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Compares the forms of all runs, stores and prints the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directories", type=pathlib.Path, nargs="+", metavar="DIR")
    arguments = parser.parse_args()
    document = {
        "command": "python -m benchmarks.frozen_forms DIR [DIR …]",
        "runs": [compare(directory) for directory in arguments.directories],
        "resnet18": resnet18(),
    }
    RESULTS.write_text(json.dumps(document, indent=1) + "\n")
    print(markdown(document))


if __name__ == "__main__":
    main()
