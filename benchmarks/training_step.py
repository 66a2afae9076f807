"""Time and temporary memory of one training step of ResNet-20 with different quantisers and searches.

Width 16, 32×32 images, batch size 128, momentum SGD; weights and inputs of all convolutions and of the classifier are
quantised. Ours: traced formats from `int_s`, all of them int8 here. Inputs were profiled before, as in most steps of a
search; whether to profile them is traced too. `python -m benchmarks.training_step` compares ours with fp32 and prints
the ratios. Other libraries (`pip install aqtp==0.9.0 qwix==0.1.8`), at int8:

* AQT: its fake quantiser (`aqt_quantizer.make_fake_quant`) with a straight-through gradient on the same tensors, since
  the gradients of its own v2 convolution are zero (`aqt_convolution_gradient` checks it).
* Qwix: `QtProvider` (quantised training) and `OdmlQatProvider` (fake quantisation), with default settings.

Branched searches, for 3, 5 and 16 formats (FLIQS, A.6 and Table 6, estimates their memory):

* DNAS-style: one convolution per format and layer, outputs mixed by the softmax of trained logits (Wu et al., 2018).
* EdMIPS-style: one convolution, with weights and inputs mixed over the formats (Cai and Vasconcelos, 2020).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from aqt_like import format_choice, gradients, interception, numerics
from aqt_like.formats import FormatTable, format_space
from benchmarks import timing
from fliqs_jax.models.resnet import ResNet
from hwcost import workload

PEERS = {"aqtp": "0.9.0", "qwix": "0.1.8"}
BRANCHED = {"3": "int_s", "5": ("int4", "int5", "int6", "int7", "int8"), "16": "fp_l"}

Forward = Callable[[Any, Any, jax.Array], tuple[jax.Array, Any]]


class Setting(NamedTuple):
    """Model, shape of an image, and batch size; only the last layer of the model has a bias."""

    model: nn.Module
    image: tuple[int, int, int]
    batch_size: int

    @property
    def paths(self) -> list[str]:
        """Paths of the quantised layers."""
        return [layer.path for layer in workload.trace(self.model, self.image, train=False)]

    def batch(self) -> tuple[jax.Array, jax.Array]:
        """Random images and labels; the time does not depend on their values."""
        rng = np.random.default_rng(0)
        images = jnp.asarray(rng.standard_normal((self.batch_size, *self.image)), jnp.float32)
        return images, jnp.asarray(rng.integers(0, 10, self.batch_size))


RESNET20 = Setting(ResNet(classes=10, depth=20, width=16), (32, 32, 3), 128)


class Step(NamedTuple):
    """Compiled training step `(state, images, labels) → state`, and its initial state."""

    compiled: Any
    state: Any

    @property
    def temporary_mebibytes(self) -> float:
        """Temporary memory in MiB by XLA's memory analysis."""
        return self.compiled.memory_analysis().temp_size_in_bytes / 2**20


def training_step(setting: Setting, params: Any, collections: Any, forward: Forward) -> Step:
    """Compiles the training step of `params`; `forward` is `(params, collections, images) → (logits, collections)`."""
    optimizer = optax.sgd(0.1, momentum=0.9, nesterov=True)

    def step(state: Any, images: jax.Array, labels: jax.Array) -> Any:
        params, collections, opt_state = state

        def loss(params: Any) -> tuple[jax.Array, Any]:
            logits, updated = forward(params, collections, images)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), updated

        gradient, collections = jax.grad(loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), collections, opt_state

    state = (params, collections, optimizer.init(params))
    compiled = jax.jit(step, donate_argnums=0).lower(state, *setting.batch()).compile()
    return Step(compiled, jax.tree.map(jnp.copy, state))


def model_step(setting: Setting, apply: Callable[..., Any] = nn.Module.apply) -> Step:
    """Training step of a linen model; `apply` updates all collections other than the parameters."""
    model = setting.model
    collections = dict(model.init(jax.random.key(0), setting.batch()[0], train=True))
    params = collections.pop("params")

    def forward(params: Any, collections: Any, images: jax.Array) -> tuple[jax.Array, Any]:
        variables = {"params": params, **collections}
        return apply(model, variables, images, train=True, mutable=list(collections))

    return training_step(setting, params, collections, forward)


def fp32(setting: Setting = RESNET20) -> Step:
    """Training step without quantisation."""
    return model_step(setting)


def bank_and_multiples(space: Any, layer_count: int) -> tuple[format_choice.FormatBank, format_choice.ClipMultiples]:
    """Formats of a space, and their precomputed clip multiples for every layer."""
    members = format_space(space)
    multiples = format_choice.precomputed_clip_multiples(members, layer_count, "gaussian", use_unsigned=True)
    return format_choice.format_bank(members, use_unsigned=True), multiples


def profiled_inputs(setting: Setting, variables: Any) -> dict[str, Any]:
    """The `"calibration"` collection after one batch."""
    profiles = interception.profile_inputs(setting.model, variables, setting.batch()[0], train=True)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(profiles[path] for path in setting.paths))
    return interception.by_layer(setting.paths, stacked, "input")


def ours(
    space: Any = "int_s",
    estimator: gradients.Estimator = gradients.straight_through,
    setting: Setting = RESNET20,
) -> Step:
    """Training step with traced formats, after profiling; the genome, all int8 in `int_s`, is in the state."""
    model, paths = setting.model, setting.paths
    bank, multiples = bank_and_multiples(space, len(paths))
    variables = model.init(jax.random.key(0), setting.batch()[0], train=True)
    collections = {
        "batch_stats": variables["batch_stats"],
        "calibration": profiled_inputs(setting, variables),
        "genome": jnp.ones(len(paths), jnp.int32),
        "profiling": jnp.asarray(False),
    }

    def forward(params: Any, collections: Any, images: jax.Array) -> tuple[jax.Array, Any]:
        genome, calibration = collections["genome"], collections["calibration"]
        profile = interception.stacked_calibration(paths, calibration)
        rows = format_choice.format_state(paths, bank, multiples, genome, profile, jnp.asarray(True))
        variables = {
            "params": params,
            "batch_stats": collections["batch_stats"],
            "calibration": calibration,
            "formats": rows,
        }
        logits, updated = interception.apply_quantized(
            model,
            variables,
            images,
            train=True,
            mutable=["batch_stats", "calibration"],
            quantizer=interception.Quantizer(estimator),
            profiling=collections["profiling"],
        )
        return logits, {**collections, **updated}

    return training_step(setting, variables["params"], collections, forward)


@jax.custom_vjp
def _rounded(x: jax.Array, row: FormatTable, scale: jax.Array) -> jax.Array:
    return numerics.round_to_grid(x / scale, row)


def _rounded_forward(x: jax.Array, row: FormatTable, scale: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    inside = (x >= row.lowest * scale) & (x <= row.largest * scale)
    return _rounded(x, row, scale), (inside, scale)


def _rounded_backward(saved: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, None, None]:
    inside, scale = saved
    return jnp.where(inside, g / scale, 0), None, None


_rounded.defvjp(_rounded_forward, _rounded_backward)


def _codes_by_custom_vjp(x: jax.Array, row: FormatTable, clip: jax.Array) -> gradients.Codes:
    scale = jax.lax.stop_gradient(numerics.scale_for(row, clip))
    return gradients.Codes(_rounded(x, row, scale), scale)


straight_through_by_custom_vjp = gradients.Estimator(_codes_by_custom_vjp)
"""The straight-through estimator as a `custom_vjp`, for comparison only; products of e7mY would overflow."""


def aqt() -> Step:
    """Training step with AQT's int8 fake quantiser: per-tensor scales for inputs, per-channel scales for kernels."""
    from aqt.jax.v2 import aqt_quantizer

    quantizer = aqt_quantizer.quantizer_make(8)

    def fake_quantize(x: jax.Array, axes: list[int]) -> jax.Array:
        quantized = aqt_quantizer.make_fake_quant(quantizer, axes)(jax.lax.stop_gradient(x))
        return x + jax.lax.stop_gradient(quantized - x)

    def apply(model: nn.Module, variables: Any, *args: Any, **kwargs: Any) -> Any:
        def quantized_kernel(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
            is_kernel = path[-1].key == "kernel"
            return fake_quantize(leaf, list(range(leaf.ndim - 1))) if is_kernel else leaf

        def quantize_input(call: Any, call_args: Any, call_kwargs: Any, context: Any) -> Any:
            if interception.is_layer_call(context):
                call_args = (fake_quantize(call_args[0], list(range(call_args[0].ndim))), *call_args[1:])
            return call(*call_args, **call_kwargs)

        params = jax.tree_util.tree_map_with_path(quantized_kernel, variables["params"])
        with nn.intercept_methods(quantize_input):
            return model.apply({**variables, "params": params}, *args, **kwargs)

    return model_step(RESNET20, apply)


def qwix(provider: str) -> Step:
    """Training step with Qwix at int8 for weights and activations; `provider` names its class."""
    import qwix as library

    rule = library.QuantizationRule(weight_qtype=jnp.int8, act_qtype=jnp.int8)
    quantized = library.quantize_model(RESNET20.model, getattr(library, provider)([rule]))
    return model_step(RESNET20._replace(model=quantized))


def branched(space: Any, *, mix_outputs: bool, setting: Setting = RESNET20) -> Step:
    """Training step of a branched search, which mixes all formats by the softmax of trained logits.

    It mixes the outputs of a layer (DNAS-style) if `mix_outputs`, and else weights and inputs (EdMIPS-style). Inputs
    were profiled before, as in `ours`.
    """
    model, paths = setting.model, setting.paths
    bank, multiples = bank_and_multiples(space, len(paths))
    variables = model.init(jax.random.key(0), setting.batch()[0], train=True)
    count = len(format_space(space))

    def forward(params: Any, collections: Any, images: jax.Array) -> tuple[jax.Array, Any]:
        profile = interception.stacked_calibration(paths, collections["calibration"])
        states = [
            format_choice.format_state(
                paths, bank, multiples, jnp.full(len(paths), k, jnp.int32), profile, jnp.asarray(True)
            )
            for k in range(count)
        ]

        def mixed(call: Any, call_args: Any, call_kwargs: Any, context: Any) -> Any:
            if not interception.is_layer_call(context):
                return call(*call_args, **call_kwargs)
            layer, (x,) = context.module, call_args
            shares = jax.nn.softmax(params["architecture"][paths.index("/".join(layer.path))])
            kernel = layer.get_variable("params", "kernel")
            rows = [_at(state, layer.path) for state in states]
            weight_clip = interception.DEFAULT_QUANTIZER.weight_clip
            kernels = [gradients.straight_through(kernel, r.weights, weight_clip(kernel, r.weights)) for r in rows]
            inputs = [gradients.straight_through(x, r.inputs, r.input_clip) for r in rows]
            if mix_outputs:
                return sum(s * _linear(layer, i, k) for s, i, k in zip(shares, inputs, kernels, strict=True))
            total_input = sum(s * i for s, i in zip(shares, inputs, strict=True))
            total_kernel = sum(s * k for s, k in zip(shares, kernels, strict=True))
            return _linear(layer, total_input, total_kernel)

        variables = {"params": params["weights"], "batch_stats": collections["batch_stats"]}
        with nn.intercept_methods(mixed):
            logits, updated = model.apply(variables, images, train=True, mutable=["batch_stats"])
        return logits, {**collections, **updated}

    params = {"weights": variables["params"], "architecture": jnp.zeros((len(paths), count))}
    collections = {"batch_stats": variables["batch_stats"], "calibration": profiled_inputs(setting, variables)}
    return training_step(setting, params, collections, forward)


def _at(collection: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        collection = collection[name]
    return collection


def _linear(layer: Any, x: Any, kernel: Any) -> jax.Array:
    """Output of a convolution or dense layer of this network with the given kernel."""
    if isinstance(layer, nn.Conv):
        padding: Any = layer.padding
        strides: Any = layer.strides if isinstance(layer.strides, tuple) else (layer.strides or 1,) * 2
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return x @ kernel + layer.get_variable("params", "bias")


def aqt_convolution_gradient() -> float:
    """Largest kernel gradient of AQT's own v2 convolution at int8, for a loss whose float gradient is not zero."""
    from aqt.jax.v2 import aqt_conv_general

    config = aqt_conv_general.conv_general_dilated_make(2, 8, 8)
    convolution = aqt_conv_general.make_conv_general_dilated(config)
    x, kernel = RESNET20.batch()[0][:2], jax.random.normal(jax.random.key(0), (3, 3, 3, 4))

    def loss(kernel: jax.Array) -> jax.Array:
        return jnp.sum(
            jnp.square(
                convolution(
                    x,
                    kernel,
                    (1, 1),
                    "SAME",
                    dimension_numbers=jax.lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2)),
                )
            )
        )

    return float(jnp.max(jnp.abs(jax.grad(loss)(kernel))))


def measure_variants(variants: dict[str, Callable[[], Step]], reference: str) -> dict[str, dict[str, float]]:
    """Time and temporary memory of each step, absolute and relative to the step `reference`."""
    steps = {name: build() for name, build in variants.items()}
    images, labels = RESNET20.batch()

    def runner(step: Step) -> Callable[[], None]:
        kept = [step.state]

        def run() -> None:
            kept[0] = jax.block_until_ready(step.compiled(kept[0], images, labels))

        return run

    seconds = timing.interleaved_medians({name: runner(step) for name, step in steps.items()})
    memory = {name: step.temporary_mebibytes for name, step in steps.items()}
    return {
        name: {
            "median_seconds": seconds[name],
            f"time_over_{reference}": seconds[name] / seconds[reference],
            "temporary_mebibytes": memory[name],
            f"memory_over_{reference}": memory[name] / memory[reference],
        }
        for name in steps
    }


OURS: dict[str, Callable[[], Step]] = {
    "fp32": fp32,
    "ours": ours,
    "ours, custom_vjp": lambda: ours(estimator=straight_through_by_custom_vjp),
}


def against_peers() -> dict[str, dict[str, float]]:
    """Compares ours, ours as a `custom_vjp`, and the other libraries with fp32."""
    return measure_variants(
        {
            **OURS,
            "AQT fake quantiser": aqt,
            "Qwix QtProvider": lambda: qwix("QtProvider"),
            "Qwix OdmlQatProvider": lambda: qwix("OdmlQatProvider"),
        },
        reference="fp32",
    )


def against_branching() -> dict[str, dict[str, dict[str, float]]]:
    """Compares both branched searches with ours, by the number of formats."""
    return {
        count: measure_variants(
            {
                "ours": lambda space=space: ours(space),
                "DNAS-style": lambda space=space: branched(space, mix_outputs=True),
                "EdMIPS-style": lambda space=space: branched(space, mix_outputs=False),
            },
            reference="ours",
        )
        for count, space in BRANCHED.items()
    }


def main() -> None:
    """Measures ours against fp32 and prints the ratios."""
    measured = measure_variants(OURS, reference="fp32")
    for name, row in measured.items():
        print(f"{name}: time {row['time_over_fp32']:.2f}, temporary memory {row['memory_over_fp32']:.2f} of fp32")


if __name__ == "__main__":
    main()
