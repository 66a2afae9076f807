"""Exported files: answers of finished runs in each runtime, and size and speed of ResNet-18.

    python -m benchmarks.exports [--data_dir=DIR] [--form=exact] [--speed] [RUN …]

RUN is a finished run, as NAME=DIRECTORY: it is exported as `launch.export` does, and its files are checked on up to
10,000 test images; with --form=fast as another network, for its accuracy. With --speed, ResNet-18 at 224 × 224 with
random weights is timed at batch 1 in ONNX Runtime and OpenVINO, in interleaved rounds, as float32, exact int8, exact
int4, in the fast form of int8, and as ONNX Runtime's own static quantiser makes it of float32. Adds what it measures to
results/exports.json, prints tables of docs/export.md.

Five minutes on two cores for the speed, half a minute for each run on CIFAR-10. The stored runs:

    make search, and its uniform-*
    python -m benchmarks.cifar10 …        (seed 0: int_s, fp)
    python -m benchmarks.controllers …    (seed 0: resnet8_low/1.6, deit/1.15; fisher-frozen-at-0.25)
"""

import argparse
import json
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from rich.console import Console

import aqt_like
from aqt_like.quantized_layer import DEFAULT_QUANTIZER
from benchmarks.timing import interleaved_medians
from fliqs_jax import models
from launch import export
from launch.runtimes import engines, self_check
from launch.runtimes.exported_network import ANY, FORMS, USUAL

RESULTS = pathlib.Path(__file__).parent / "results" / "exports.json"
ROUNDS = 21
SIDE = 224


def answers(name: str, directory: pathlib.Path, form: str, **changes: Any) -> dict[str, Any]:
    """The files of a run in a form, and what each runtime made of them; also of those that failed."""
    with tempfile.TemporaryDirectory() as out:
        try:
            export.export_run(
                directory,
                pathlib.Path(out),
                Console(width=200),
                form=form,
                targets=USUAL if form == "exact" else ("onnx",),
                batch=ANY,
                pixels=False,
                tolerance=0.0,
                **changes,
            )
        except ValueError as error:
            print(error)
        files = json.loads((pathlib.Path(out) / export.DESCRIPTION).read_text())["files"]
    for file in files.values():
        file.pop("speed", None)  # of a small network, while others are measured
    return {"network": name, "files": files}


def resnet18() -> tuple[dict[str, bytes], np.ndarray]:
    """Graphs of ResNet-18 by form, and an image."""
    from launch.runtimes import fast_graphs, onnx_graphs, real_units, static_quantization

    model = models.create("resnet18", classes=1000)
    image = np.asarray(jax.random.normal(jax.random.key(0), (1, SIDE, SIDE, 3)))
    variables: Any = jax.jit(lambda x: model.init(jax.random.key(1), x, train=False))(image)

    def in_float32(x: jax.Array) -> Any:
        return model.apply(variables, x, train=False)

    in_float = onnx_graphs.export(in_float32, image)
    graphs = {"float32": in_float}
    for name in ("int8", "int4"):
        network = aqt_like.quantize_model(model, variables, image, name, train=False)
        frozen = aqt_like.freeze(network, variables, image, train=False)
        bound, others = frozen.bind(model)
        exported = onnx_graphs.export(lambda x, b=bound, v=others: b.apply(v, x, train=False), image)
        graphs[f"exact {name}"] = exported
        if name == "int8":
            bound, others = real_units.bind(frozen, model, DEFAULT_QUANTIZER)
            clipped = onnx_graphs.export_with_containers(
                lambda x, b=bound, v=others: b.apply(v, x, train=False), image, operands=fast_graphs.CLIPPED
            )
            graphs["fast int8"] = fast_graphs.quantized(clipped, frozen, [image]).model
    graphs["ONNX Runtime's static quantiser"] = static_quantization.quantize(in_float, [image])
    return {name: graph.SerializeToString() for name, graph in graphs.items()}, image


def prepared(name: str, graph: bytes, image: np.ndarray, threads: int) -> Callable[[], object]:
    """The graph in a runtime, with so many threads."""
    if name == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        return lambda: session.run(None, {"input": image})
    core = engines.import_openvino().Core()
    settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(graph), "CPU", settings)
    return lambda: compiled(image)


def speed(threads: int) -> dict[str, Any]:
    """Bytes of each form of ResNet-18, and median milliseconds in each runtime."""
    graphs, image = resnet18()
    rows: list[dict[str, Any]] = []
    for name in self_check.ONNX_RUNTIMES:
        device = engines.find(name, threads=threads).device
        runs, kernels = {}, {}
        for form, graph in graphs.items():
            with tempfile.TemporaryDirectory() as directory:
                file = pathlib.Path(directory) / "model.onnx"
                file.write_bytes(graph)
                kernels[form] = self_check.ONNX_RUNTIMES[name](file).integer_kernels
            runs[form] = prepared(name, graph, image, threads)
        seconds = interleaved_medians(runs, ROUNDS)
        rows += [
            {
                "form": form,
                "device": device,
                "bytes": len(graph),
                "of_float32": round(len(graph) / len(graphs["float32"]), 4),
                "milliseconds": round(1e3 * seconds[form], 3),
                "speedup": round(seconds["float32"] / seconds[form], 3),
                "integer_kernels": kernels[form],
            }
            for form, graph in graphs.items()
        ]
    return {"network": "ResNet-18", "input": list(image.shape), "rounds": ROUNDS, "rows": rows}


def markdown(document: dict[str, Any]) -> str:
    """The tables of docs/export.md."""
    head = "| network | accuracy | model.onnx | model.stablehlo | ONNX Runtime | OpenVINO | StableHLO |"
    lines = [head, "|---" * 7 + "|"]
    for run in document["runs"]:
        files = [run["files"][name] for name in ("model.onnx", "model.stablehlo")]
        checks = [check for file in files for check in file["checks"] if "accuracy" in check]
        told = [f"{100 * checks[0]['accuracy_of_the_network']:.2f} %", *(f"{file['bytes']:,}" for file in files)]
        for check in checks:
            told.append(f"{len(check['differing'])} of {check['decisions']:,}, {check['largest_difference']:.2g}")
        lines.append(f"| {run['network']} | {' | '.join(told)} |")
    if fast := document.get("fast"):
        lines += ["", "| fast form | accuracy | ONNX Runtime | OpenVINO |", "|---" * 4 + "|"]
        for run in fast:
            checks = [check for check in run["files"]["model.onnx"]["checks"] if "accuracy" in check]
            told = [checks[0]["accuracy_of_the_network"], *(check["accuracy"] for check in checks)]
            lines.append(f"| {run['network']} | {' | '.join(f'{100 * each:.2f} %' for each in told)} |")
    if timed := document.get("speed"):
        lines += ["", "| ResNet-18 | runtime | bytes / float32 | ms | float32 / ms | products in integers |"]
        lines += ["|---" * 6 + "|"]
        for row in timed["rows"]:
            integer = " of ".join(map(str, row["integer_kernels"]))
            told = [row["device"].rsplit(", ", 1)[-1], f"{row['of_float32']:.3f}", f"{row['milliseconds']:.1f}"]
            lines.append(f"| {row['form']} | {' | '.join(told)} | {row['speedup']:.2f} × | {integer} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Exports, times, stores and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", metavar="RUN", help="NAME=DIRECTORY")
    parser.add_argument("--data_dir", help="data.data_dir of the runs")
    parser.add_argument("--form", choices=tuple(FORMS), default="exact")
    parser.add_argument("--speed", action="store_true", help="times ResNet-18")
    parser.add_argument("--threads", type=int, default=2, help="of each runtime")
    arguments = parser.parse_args()
    document = json.loads(RESULTS.read_text())
    document["command"] = "python -m benchmarks.exports --speed NAME=DIRECTORY …"
    changes = {"data.data_dir": arguments.data_dir} if arguments.data_dir else {}
    for text in arguments.runs:
        name, _, directory = text.partition("=")
        measured = answers(name, pathlib.Path(directory), arguments.form, **changes)
        key = "runs" if arguments.form == "exact" else "fast"
        document[key] = [run for run in document.get(key, []) if run["network"] != name] + [measured]
        RESULTS.write_text(json.dumps(document, indent=1) + "\n")
    if arguments.speed:
        document["speed"] = speed(arguments.threads)
    RESULTS.write_text(json.dumps(document, indent=1) + "\n")
    print(markdown(document))


if __name__ == "__main__":
    main()
