"""Memory and traffic of the search step of ResNet-18 on one TPU v5e, as its compiler plans it. No TPU is needed.

    pip install libtpu
    JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 python -m benchmarks.tpu_step [NAME …]

The step is that of configs/fliqs_imagenet.py at 128 images of 224 pixels per device, float32, with codes in bfloat16. A
variant takes about seven minutes of a core; those named are planned anew, or all. Writes results/tpu_step.json beside
this file.
"""

import json
import pathlib
import sys
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from configs import fliqs_imagenet
from fliqs_jax.search import make_search_step
from launch.training import finished
from launch.training.experiment import Experiment, prepare_experiment

RESULTS = pathlib.Path(__file__).parent / "results" / "tpu_step.json"
TOPOLOGY = "v5e:2x2"
BYTES_PER_SECOND, OPERATIONS_PER_SECOND = 819e9, 197e12  # of one TPU v5e, in bfloat16
BATCH, SIDE = 128, 224
BFLOAT16, BLOCKS = {"activations": "bfloat16"}, {"rematerialise": "block"}
VARIANTS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": BFLOAT16,
    "float32, blocks rematerialised": BLOCKS,
    "bfloat16, blocks rematerialised": BFLOAT16 | BLOCKS,
}


class _ImageNet:
    """The data set, of which only shapes and sizes matter."""

    example = jax.ShapeDtypeStruct((SIDE, SIDE, 3), jnp.float32)
    classes = 1000
    train_examples = 1_281_167

    def open(self, *, valid_examples: int, seed: int) -> NoReturn:
        """Is never called."""
        raise NotImplementedError(f"nothing is read, {valid_examples} examples and seed {seed} neither")


def prepared(settings: dict[str, Any]) -> Experiment:
    """The experiment of a variant."""
    config = fliqs_imagenet.get_config("resnet18")
    config.update({"batch_size": BATCH, "valid_batch_size": BATCH, "compute": "bfloat16", **settings})
    return prepare_experiment(config, source=_ImageNet())


def plan(experiment: Experiment) -> dict[str, float]:
    """Bytes of arguments and temporaries, their peak, bytes moved, and operations of the compiled search step."""
    device = SingleDeviceSharding(topologies.get_topology_desc(TOPOLOGY, "tpu").devices[0])
    initial = finished.make_initial_state(experiment)
    state = jax.eval_shape(lambda: initial(experiment.trials[0]))
    images = jax.ShapeDtypeStruct((BATCH, SIDE, SIDE, 3), jnp.float32)
    batch = {"input": images, "label": jax.ShapeDtypeStruct((BATCH,), jnp.int32)}
    step = jax.jit(make_search_step(experiment.search), donate_argnums=0, in_shardings=device, out_shardings=device)
    compiled: Any = step.lower(state, batch, batch).compile()
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    return {
        "arguments": memory.argument_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
        "peak": memory.peak_memory_in_bytes,
        "moved": cost["bytes accessed"],
        "operations": cost["flops"],
    }


def markdown(planned: dict[str, dict[str, float]]) -> str:
    """Table of docs/scale.md in Markdown."""
    lines = [
        "| activations | peak (GiB) | moved (GiB) | at 819 GB/s (ms) | operations at 197 T/s (ms) |",
        "|---|---|---|---|---|",
    ]
    for name, found in planned.items():
        gibibytes = [f"{found[key] / 2**30:.2f}" for key in ("peak", "moved")]
        bounds = found["moved"] / BYTES_PER_SECOND, found["operations"] / OPERATIONS_PER_SECOND
        lines.append(f"| {name} | {' | '.join([*gibibytes, *(f'{1000 * seconds:.1f}' for seconds in bounds)])} |")
    return "\n".join(lines) + "\n"


def main(names: list[str]) -> None:
    """Plans, stores after each variant, and prints."""
    if unknown := [name for name in names if name not in VARIANTS]:
        raise SystemExit(f"{', '.join(unknown)}: expected some of {'; '.join(VARIANTS)}")
    stored = json.loads(RESULTS.read_text())["planned"] if RESULTS.exists() else {}
    for name in names or VARIANTS:
        stored[name] = plan(prepared(VARIANTS[name]))
        in_order = {name: stored[name] for name in VARIANTS if name in stored}
        document = {"command": "python -m benchmarks.tpu_step", "topology": TOPOLOGY, "planned": in_order}
        RESULTS.write_text(json.dumps(document, indent=1) + "\n")
    print(markdown(json.loads(RESULTS.read_text())["planned"]))


if __name__ == "__main__":
    main(sys.argv[1:])
