"""Time and memory of the search step against fp32 training plus validation, with 16 formats against 3, by controller.

    python -m benchmarks.search_step

ResNet-20 of width 16 on 32×32 images, batch size 128, the same optimiser; ratios of medians over interleaved turns, and
temporary memory by XLA's memory analysis. The search step is one of those after warm-up, with inputs quantised and no
longer profiled. Writes results/search_step.json beside this file.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from aqt_like import gradients
from benchmarks import timing, training_step
from configs import fliqs_digits
from fliqs_jax import losses
from fliqs_jax.models.resnet import ResNet
from fliqs_jax.quality import accuracy
from fliqs_jax.search import freeze_genomes, make_search_step
from launch import data
from launch.training import finished, optimizers
from launch.training.experiment import prepare_experiment

RESULTS = pathlib.Path(__file__).parent / "results" / "search_step.json"
CUSTOM_VJP = "3 formats, custom_vjp"
FISHER, FISHER_16, FROZEN = "fisher", "fisher, 16 formats", "fisher, frozen"
FISHER_VALIDATED, PAIRED = "fisher, validation", "paired"
BATCH = 128
IMAGE = (32, 32, 3)

Batch = dict[str, jax.Array]


def images() -> data.Arrays:
    """Placeholder data set, of which only the shapes matter."""
    few = data.Split(np.zeros((2 * BATCH, *IMAGE), np.float32), np.zeros(2 * BATCH, np.int32))
    return data.Arrays(train=few, test=few, classes=10)


def batch(seed: int) -> Batch:
    """Batch of random images and labels; the time does not depend on their values."""
    rng = np.random.default_rng(seed)
    images = rng.standard_normal((BATCH, *IMAGE)).astype(np.float32)
    return {"input": jnp.asarray(images), "label": jnp.asarray(rng.integers(0, 10, BATCH), jnp.int32)}


def search_step(
    formats: str,
    estimator: gradients.Estimator = gradients.straight_through,
    *,
    draws: int | None = None,
    frozen: bool = False,
    **settings: Any,
) -> tuple[Any, Any]:
    """Compiled search step over `formats`, and a state in which inputs are profiled and all phases have begun.

    Args:
      formats: format space.
      estimator: gradient estimator.
      draws: validation forwards per step, if not the controller's own.
      frozen: whether one genome is trained.
      **settings: of the config, with `.` as `__`.
    """
    config = fliqs_digits.get_config()
    config.update({"formats": formats, "target": 1.15, "target_unit": "int4", "baselines": (), "policy": "reinforce"})
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in settings.items()})
    config.model.update({"depth": 20, "width": 16})
    config.data.valid_examples = BATCH
    prepared = prepare_experiment(config, source=images())
    state = finished.initial_state(prepared, prepared.trials[0])
    quantizer, controller = prepared.search.quantizer._replace(estimator=estimator), prepared.search.controller
    controller = controller if draws is None else controller._replace(draws=draws)
    search = dataclasses.replace(prepared.search, quantizer=quantizer, controller=controller)
    step = jax.jit(make_search_step(search), donate_argnums=0).lower(state, batch(0), batch(1)).compile()
    state, _ = step(state, batch(0), batch(1))  # The first step profiles.
    warmup = round(config.controller.reinforce.warmup_fraction * search.total_steps)
    begun = max(search.profile_steps, search.input_quantization_step, warmup)
    state = state._replace(step=jnp.asarray(begun, jnp.int32))
    return step, freeze_genomes(search, state) if frozen else state


def fp32_step() -> tuple[Any, Any]:
    """Compiled fp32 training step with a forward pass on a validation batch, and its initial state."""
    model = ResNet(classes=10, depth=20, width=16)
    optimizer = optimizers.weight_optimizer(fliqs_digits.get_config().optimizer, 1000)
    apply: Callable[..., Any] = model.apply
    loss_of = losses.cross_entropy(0.1)
    variables = model.init(jax.random.key(0), batch(0)["input"], train=False)

    def step(state: Any, train: Batch, valid: Batch) -> tuple[Any, dict[str, jax.Array]]:
        params, batch_stats, opt_state = state

        def loss_and_updates(params: Any) -> tuple[jax.Array, Any]:
            inputs = {"params": params, "batch_stats": batch_stats}
            logits, updated = apply(inputs, train["input"], train=True, mutable=["batch_stats"])
            return loss_of(logits, train), updated["batch_stats"]

        (loss, new_stats), gradient = jax.value_and_grad(loss_and_updates, has_aux=True)(params)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        params: Any = optax.apply_updates(params, updates)
        logits = apply({"params": params, "batch_stats": new_stats}, valid["input"], train=False)
        metrics = {"loss": loss, "valid_quality": accuracy.on_batch(logits, valid)}
        return (params, new_stats, opt_state), metrics

    state = (variables["params"], variables["batch_stats"], optimizer.init(variables["params"]))
    return jax.jit(step, donate_argnums=0).lower(state, batch(0), batch(1)).compile(), state


def markdown(document: dict[str, Any]) -> str:
    """Table of docs/results.md in Markdown."""
    lines = ["| step | time / fp32 | temporary memory |", "|---|---|---|"]
    names = {
        "fp32": "fp32 training step + fp32 validation forward",
        "3 formats": "search step, 3 formats (`int_s`)",
        "16 formats": "search step, 16 formats (`fp_l`)",
        CUSTOM_VJP: "search step, 3 formats, straight-through estimator as a `custom_vjp` instead of an added zero",
        PAIRED: "search step, 3 formats, `paired`: a second validation forward",
        FISHER: "search step, 3 formats, `policy=fisher`: scores, and no validation forward",
        FISHER_16: "search step, 16 formats, `policy=fisher`",
        FISHER_VALIDATED: "search step, 3 formats, `policy=fisher` with a validation forward",
        FROZEN: "search step, 3 formats, `policy=fisher`, frozen",
    }
    for name, text in names.items():
        ratio = document["median_seconds"][name] / document["median_seconds"]["fp32"]
        lines.append(f"| {text} | {ratio:.2f} | {document['temporary_mebibytes'][name]:.0f} MiB |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures, stores and prints."""
    steps = {
        "fp32": fp32_step(),
        "3 formats": search_step("int_s"),
        "16 formats": search_step("fp_l"),
        CUSTOM_VJP: search_step("int_s", training_step.straight_through_by_custom_vjp),
        PAIRED: search_step("int_s", controller__reinforce__paired=True),
        FISHER: search_step("int_s", policy="fisher"),
        FISHER_16: search_step("fp_l", policy="fisher"),
        FISHER_VALIDATED: search_step("int_s", policy="fisher", draws=1),
        FROZEN: search_step("int_s", policy="fisher", frozen=True),
    }
    batches = batch(0), batch(1)

    def stepper(step: Callable, state: Any) -> Callable[[], None]:
        kept = [state]

        def run() -> None:
            kept[0], metrics = step(kept[0], *batches)
            jax.block_until_ready((kept[0], metrics))

        return run

    seconds = timing.interleaved_medians({name: stepper(*pair) for name, pair in steps.items()})
    memory = {name: step.memory_analysis().temp_size_in_bytes / 2**20 for name, (step, _) in steps.items()}
    document = {
        "command": "python -m benchmarks.search_step",
        "device": f"{jax.devices()[0].device_kind}, {jax.device_count()} device",
        "repetitions": timing.REPETITIONS,
        "median_seconds": seconds,
        "temporary_mebibytes": memory,
        "search_step_over_fp32": {name: seconds[name] / seconds["fp32"] for name in steps if name != "fp32"},
        "16_formats_over_3": seconds["16 formats"] / seconds["3 formats"],
        "16_formats_over_3_memory": memory["16 formats"] / memory["3 formats"],
    }
    RESULTS.write_text(json.dumps(document, indent=1) + "\n")
    print(markdown(document))
    print(
        f"16 formats / 3: time {document['16_formats_over_3']:.2f}, memory {document['16_formats_over_3_memory']:.2f}"
    )


if __name__ == "__main__":
    main()
