"""All measurements of the quantiser: kernels, training steps against other libraries and branched searches, exactness.

    pip install aqtp==0.9.0 qwix==0.1.8     (the other libraries)
    python -m benchmarks.quantizers         (about ten minutes on two cores)

Writes results/quantizers.json beside this file and the page docs/quantizers.md.
"""

import importlib.metadata
import json
import pathlib
import sys
from typing import Any

import jax

from benchmarks import kernel, mismatches, timing, training_step

RESULTS = pathlib.Path(__file__).parent / "results" / "quantizers.json"
PAGE = pathlib.Path(__file__).parents[1] / "docs" / "quantizers.md"

Document = dict[str, Any]


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]) + "\n"


def kernel_table(document: Document) -> str:
    """Markdown table of kernel times relative to the copy."""
    sizes = document["kernel"]
    rows = []
    for name in kernel.KERNELS:
        ranges = [sizes[size][name] for size in sizes]
        rows.append([name, *(f"{r['median']:.2f} ({r['least']:.2f} – {r['largest']:.2f})" for r in ranges)])
    return _table(["kernel, time / copy", *sizes], rows)


def peers_table(document: Document) -> str:
    """Markdown table of training steps relative to fp32."""
    return _table(
        ["training step of ResNet-20", "time / fp32", "temporary memory / fp32"],
        [
            [name, f"{row['time_over_fp32']:.2f}", f"{row['memory_over_fp32']:.2f}"]
            for name, row in document["training_step"].items()
        ],
    )


def branching_table(document: Document) -> str:
    """Markdown table of branched searches relative to ours."""
    rows = []
    for count, steps in document["branching"].items():
        for name, row in steps.items():
            rows.append([count, name, f"{row['time_over_ours']:.2f}", f"{row['memory_over_ours']:.2f}"])
    return _table(["formats", "search", "time / ours", "temporary memory / ours"], rows)


def mismatch_table(document: Document) -> str:
    """Markdown table of the fractions of mismatches."""
    table = document["mismatches"]
    emulations = list(next(iter(table.values())))
    rows = [[name, *(f"{row[emulation]:.2%}" for emulation in emulations)] for name, row in table.items()]
    return _table(["format", *emulations], rows)


def page(document: Document) -> str:
    """The page docs/quantizers.md in Markdown."""
    return f"""# The quantiser, measured

Made by `{document["command"]}` on {document["device"]}; medians of {document["repetitions"]} interleaved turns. The
figures are in [quantizers.json](../benchmarks/results/quantizers.json), what exactly is measured in
[benchmarks/](../benchmarks).

## The kernel

A copy is `x · 1.0001`. Medians over {kernel.TENSORS} tensors, with the range: a copy in the cores' own caches runs at
one of two speeds here, by where the tensor's pages happen to lie. 256 bits are XLA's default (`XLA_FLAGS` set it).

{kernel_table(document)}
## A training step

ResNet-20 of width 16, 32×32 images, batch 128. Ours takes the formats as arguments, all int8 here; the peers are told
int8. AQT's fake quantiser gets a straight-through gradient, because the gradient of its own v2 convolution is
{document["aqt_convolution_gradient"]:g}.

{peers_table(document)}
## Against branching

FLIQS runs one format per layer and step, however many there are to choose from. A DNAS-style search computes a
convolution for each and mixes the outputs; an EdMIPS-style one mixes weights and inputs and computes one convolution.
(The paper estimates memory in Table 6; this is measured.)

{branching_table(document)}
## Exactness

The share of {mismatches.VALUES:,} normal values that are not rounded to the nearest value of the format. AQT goes
through bfloat16 and rounds ties away from zero; `lax.reduce_precision` reserves the highest exponent for infinity
(values beyond its range are left out) and has no subnormals.

{mismatch_table(document)}"""


def main() -> None:
    """Measures, stores and prints."""
    install = "pip install " + " ".join(f"{name}=={version}" for name, version in training_step.PEERS.items())
    for name, version in training_step.PEERS.items():
        try:
            installed = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            installed = "nothing"
        if installed != version:
            sys.exit(f"error: found {installed}, expected {name} {version}: {install}")
    document = {
        "command": "python -m benchmarks.quantizers",
        "device": f"{jax.device_count()} {jax.devices()[0].device_kind} device",
        "repetitions": timing.REPETITIONS,
        "mismatches": mismatches.measure(),
        "aqt_convolution_gradient": training_step.aqt_convolution_gradient(),
        "training_step": training_step.against_peers(),
        "kernel": kernel.measure(),
        "branching": training_step.against_branching(),
    }
    RESULTS.write_text(json.dumps(document, indent=1) + "\n")
    PAGE.write_text(page(document))
    print(PAGE.read_text())


if __name__ == "__main__":
    main()
