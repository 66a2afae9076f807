"""Memory of one-shot and branched searches over `int_s` on ResNet-18 (FLIQS, Table 6).

    python -m benchmarks.search_memory

Compares our estimates from the workload, for batches of 32 in half precision, with the paper's, and adds XLA's memory
analysis of compiled float32 training steps, which are not run. Writes results/search_memory.json beside this file.
"""

import json
import pathlib
from typing import Any, NamedTuple

from aqt_like.formats import format_space
from benchmarks import training_step
from benchmarks.training_step import Setting
from fliqs_jax import models
from hwcost import workload
from hwcost.workload import Workload

RESULTS = pathlib.Path(__file__).parent / "results" / "search_memory.json"
SETTING = Setting(models.create("resnet18", classes=1000), (224, 224, 3), 32)
SPACE = "int_s"
# Table 6: gradient, weight and activation (MB), and number of search parameters.
PAPER = {"FLIQS": (46.8, 23.4, 73.6, 51), "branched": (92.6, 70.2, 220.8, 51)}
WEIGHT_BYTES = ACTIVATION_BYTES = 2  # "model weights and activations are stored in half-precision"
GRADIENT_BYTES = 4  # "gradients are full-precision with no gradient checkpointing"


class SearchMemory(NamedTuple):
    """Memory in bytes of gradients, weights and stored activations, and number of parameters that the search adds."""

    gradient: int
    weight: int
    activation: int
    search_parameters: int


def one_shot(workload: Workload, *, batch_size: int, formats: int) -> SearchMemory:
    """Memory of a one-shot search, which runs one format per layer: that of training, for any number of formats."""
    weights = sum(layer.weights for layer in workload)
    return SearchMemory(
        gradient=GRADIENT_BYTES * weights,
        weight=WEIGHT_BYTES * weights,
        activation=round(ACTIVATION_BYTES * batch_size * sum(layer.runs * layer.output_values for layer in workload)),
        search_parameters=formats * len(workload),
    )


def branched(workload: Workload, *, batch_size: int, formats: int) -> SearchMemory:
    """Memory of a branched search, which runs each layer once per format, with separate weights for each."""
    single = one_shot(workload, batch_size=batch_size, formats=formats)
    return SearchMemory(
        gradient=formats * single.gradient,
        weight=formats * single.weight,
        activation=formats * single.activation,
        search_parameters=single.search_parameters,
    )


def estimates() -> dict[str, dict[str, Any]]:
    """Estimated memory of each search, from the workload."""
    layers = workload.trace(SETTING.model, SETTING.image, train=False)
    count = len(format_space(SPACE))
    searches = {"FLIQS": one_shot, "branched": branched}
    return {
        name: estimate(layers, batch_size=SETTING.batch_size, formats=count)._asdict()
        for name, estimate in searches.items()
    }


def paper_reading() -> dict[str, int]:
    """Reading that reproduces the paper's activations and parameters: main-path convolutions, one byte per output."""
    layers = workload.trace(SETTING.model, SETTING.image, train=False)
    main_path = [layer for layer in layers if "shortcut" not in layer.path and layer.kind == "conv"]
    return {
        "activation": SETTING.batch_size * sum(layer.output_values for layer in main_path),
        "search_parameters": len(format_space(SPACE)) * len(main_path),
    }


def planned() -> dict[str, dict[str, int]]:
    """Bytes that XLA plans for each compiled step: arguments (weights, momentum, batch) and temporary memory."""
    steps = {
        "fp32": training_step.fp32(SETTING),
        "FLIQS": training_step.ours(SPACE, setting=SETTING),
        "branched": training_step.branched(SPACE, mix_outputs=True, setting=SETTING),
    }
    analyses = {name: step.compiled.memory_analysis() for name, step in steps.items()}
    return {
        name: {"arguments": analysis.argument_size_in_bytes, "temporary": analysis.temp_size_in_bytes}
        for name, analysis in analyses.items()
    }


def markdown(measured: dict[str, Any]) -> str:
    """Table of docs/results.md in Markdown."""
    lines = [
        "| search | gradient (MB) | weight (MB) | activation (MB) | parameters | planned in float32 (MB) |",
        "|---|---|---|---|---|---|",
    ]
    for name, memory in measured["estimates"].items():
        ours = [f"{memory[key] / 1e6:.1f}" for key in ("gradient", "weight", "activation")]
        ours.append(str(memory["search_parameters"]))
        cells = [f"{mine} (paper: {theirs})" for mine, theirs in zip(ours, PAPER[name], strict=True)]
        total = sum(measured["planned"][name].values()) / 1e6
        lines.append(f"| {name} | {' | '.join(cells)} | {total:,.0f} |")
    total = sum(measured["planned"]["fp32"].values()) / 1e6
    lines.append(f"| none: float32 | | | | | {total:,.0f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Estimates, compiles, stores and prints."""
    measured = {
        "command": "python -m benchmarks.search_memory",
        "estimates": estimates(),
        "paper_reading": paper_reading(),
        "planned": planned(),
    }
    RESULTS.write_text(json.dumps(measured, indent=1) + "\n")
    print(markdown(measured))


if __name__ == "__main__":
    main()
