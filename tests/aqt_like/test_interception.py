import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aqt_like import calibration, format_choice, gradients, granularity, interception
from aqt_like.formats import format_space

PATHS = ("conv", "head")


class Plain(nn.Module):
    """A network written without quantisation."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), name="conv")(x))
        return nn.Dense(3, name="head")(x.mean((1, 2)))


@pytest.fixture(scope="module")
def model_and_variables():
    x = jax.random.normal(jax.random.key(1), (8, 6, 6, 2))
    return Plain(), Plain().init(jax.random.key(0), x), x


def profiled(model, variables, x, batches=1):
    collection = interception.empty_calibration(PATHS)
    for i in range(batches):
        _, updated = interception.apply_quantized(
            model, {**variables, "calibration": collection}, x * (i + 1), mutable=["calibration"]
        )
        collection = updated["calibration"]
    return collection


def formats_for(collection, choice, *, space="int_s", use_unsigned=True, quantize_inputs=True):
    members = format_space(space)
    return format_choice.format_state(
        PATHS,
        format_choice.format_bank(members, use_unsigned=use_unsigned),
        format_choice.precomputed_clip_multiples(members, 2, "gaussian", use_unsigned=use_unsigned),
        jnp.asarray(choice),
        interception.stacked_calibration(PATHS, collection),
        jnp.asarray(quantize_inputs),
    )


def test_without_formats_the_model_computes_in_float(model_and_variables):
    model, variables, x = model_and_variables
    np.testing.assert_array_equal(interception.apply_quantized(model, variables, x), model.apply(variables, x))


def test_profile_is_the_mean_over_batches_and_keeps_the_smallest(model_and_variables):
    model, variables, x = model_and_variables
    profile = interception.stacked_calibration(PATHS, profiled(model, variables, x, batches=3))
    np.testing.assert_allclose(profile.mean_square[0], np.mean(x**2) * (1 + 4 + 9) / 3, rtol=1e-5)
    np.testing.assert_allclose(profile.smallest[0], 3 * x.min(), rtol=1e-6)
    assert list(profile.never_negative) == [False, True]  # images are signed, what a ReLU leaves is not
    assert list(profile.batches) == [3, 3]
    assert not interception.LayerCalibration.empty().never_negative


def test_inputs_stay_in_float_until_they_are_quantised(model_and_variables):
    model, variables, x = model_and_variables
    collection = profiled(model, variables, x)

    def outputs(**settings):
        formats_ = formats_for(collection, [0, 0], **settings)
        return interception.apply_quantized(model, {**variables, "formats": formats_, "calibration": collection}, x)

    weights_only = outputs(quantize_inputs=False)
    assert not np.allclose(weights_only, model.apply(variables, x))
    assert not np.allclose(weights_only, outputs())
    assert not np.allclose(outputs(use_unsigned=False), outputs())


def test_float_formats_have_no_unsigned_twin(model_and_variables):
    model, variables, x = model_and_variables
    collection = profiled(model, variables, x)
    rows = formats_for(collection, [0, 0], space="fp_s")
    assert rows["head"].inputs.lowest == -6


def test_profiled_multiples_are_best_on_the_tensors_themselves(model_and_variables):
    model, variables, x = model_and_variables
    members = format_space("int_s")
    bank = format_choice.format_bank(members, use_unsigned=True)
    operands = interception.layer_operands(model, variables, x)
    assert set(operands) == set(PATHS)
    found = format_choice.profiled_clip_multiples(PATHS, bank, operands)
    assert found.weights.shape == found.inputs.shape == found.unsigned_inputs.shape == (2, 3)
    row = bank.signed.row(0)
    error = calibration.clipped_error(operands["conv"][0], row, found.inputs[0, 0])
    assert error <= calibration.clipped_error(operands["conv"][0], row, 0.7 * found.inputs[0, 0])
    assert error <= calibration.clipped_error(operands["conv"][0], row, 1.4 * found.inputs[0, 0])


def test_another_quantizer_is_passed_in(model_and_variables):
    """Gradients and granularity are functions: here MX blocks, and thresholds that learn."""
    model, variables, x = model_and_variables
    collection = profiled(model, variables, x)
    rows = formats_for(collection, [0, 0])

    def outputs(quantizer, rows=rows):
        return interception.apply_quantized(
            model, {**variables, "formats": rows, "calibration": collection}, x, quantizer=quantizer
        )

    blocks = granularity.Clipping(calibration.absolute_max, granularity.per_block(2, -2), granularity.power_of_two)
    seen = []

    def estimator(tensor, row, clip):
        seen.append((tensor.shape, clip.shape))
        return gradients.straight_through(tensor, row, clip)

    assert not np.allclose(
        outputs(interception.Quantizer(estimator, weight_clip=blocks)), outputs(interception.Quantizer())
    )
    assert ((3, 3, 2, 4), (3, 3, 2, 4)) in seen

    dynamic = granularity.Clipping(calibration.absolute_max, granularity.per_channel(0))
    assert not np.allclose(outputs(interception.Quantizer(input_clip=dynamic)), outputs(interception.Quantizer()))

    def learning(tensor, row, clip):
        return gradients.straight_through(tensor, row, clip) + clip - jax.lax.stop_gradient(clip)

    def loss(clip, estimator):
        changed = {**rows, "conv": rows["conv"]._replace(input_clip=clip)}
        return jnp.sum(outputs(interception.Quantizer(estimator), changed) ** 2)

    clip = rows["conv"].input_clip
    assert jax.grad(loss)(clip, gradients.straight_through) == 0
    assert jax.grad(loss)(clip, learning) != 0


def test_single_layers_may_have_a_granularity_of_their_own(model_and_variables):
    model, variables, x = model_and_variables
    rows = formats_for(profiled(model, variables, x), [0, 0])
    scaled = jax.tree.map(lambda p: p, variables)
    scaled["params"]["head"]["kernel"] = variables["params"]["head"]["kernel"] * jnp.asarray([1.0, 100.0, 1.0])
    per_tensor = granularity.Clipping(calibration.root_mean_square, granularity.kernel_granularity("per_tensor"))
    plain = interception.apply_quantized(model, scaled | {"formats": rows}, x)
    coarse = interception.apply_quantized(
        model, scaled | {"formats": rows}, x, quantizer=interception.Quantizer(weight_clip_of={"head": per_tensor})
    )
    with pytest.raises(ValueError, match=r"no layer .* ran at neck \(weight_clip_of\); there ran conv"):
        interception.apply_quantized(
            model, scaled | {"formats": rows}, x, quantizer=interception.Quantizer(weight_clip_of={"neck": per_tensor})
        )
    bias = scaled["params"]["head"]["bias"]
    assert (np.asarray(coarse)[:, [0, 2]] == bias[jnp.asarray([0, 2])]).all()  # small columns round to zero beside 100
    assert (np.asarray(plain)[:, [0, 2]] != bias[jnp.asarray([0, 2])]).any()


@pytest.mark.parametrize(("name", "thresholds"), [("per_tensor", 1), ("per_channel", 6), ("per_block_4", 2 * 6 * 9)])
def test_granularities_of_kernels_by_name(name, thresholds):
    kernel = jax.random.normal(jax.random.key(0), (3, 3, 8, 6))
    found = granularity.kernel_granularity(name)(kernel, calibration.absolute_max)
    assert len(np.unique(found)) == thresholds
    with pytest.raises(ValueError, match="unknown granularity 'per_row': expected per_tensor, per_channel"):
        granularity.kernel_granularity("per_row")


def test_weights_and_inputs_may_differ_in_format():
    pairs = format_space("int8,int4/int8")
    bank = format_choice.format_bank(pairs, use_unsigned=True)
    multiples = format_choice.precomputed_clip_multiples(pairs, 2, "gaussian", use_unsigned=True)
    alone = format_choice.precomputed_clip_multiples(format_space("int4,int8"), 1, "gaussian", use_unsigned=True)
    profile = jax.tree.map(
        lambda leaf: jnp.stack([leaf] * 2), interception.LayerCalibration(1.0, jnp.zeros(()), jnp.ones(()))
    )
    state = format_choice.format_state(["a", "b"], bank, multiples, jnp.asarray([0, 1]), profile, True)
    assert [int(state[path].weights.bits) for path in "ab"] == [8, 4]
    assert [int(state[path].inputs.bits) for path in "ab"] == [8, 8]
    assert [float(state["b"].weights.clip_multiple), float(state["b"].input_clip)] == [
        float(alone.weights[0, 0]),
        float(alone.unsigned_inputs[0, 1]),
    ]
