"""What models do that is hard on quantisation: own operations, jit, loops over shared layers, half precision, typing
mistakes. Nothing may silently stay in float, be profiled from a part of the data, or read codes for values.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import DenyList

import aqt_like
from aqt_like import format_choice, gradients, interception, numerics, quantize_model
from aqt_like.formats import format_space, format_table, parse_format
from aqt_like.interception import LayerFormats, Product, Quantizer, apply_quantized, kernel_clip
from aqt_like.path_rules import RuleError


def batch(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape or (8, 4)).astype(np.float32)


def made(call, x=None):
    """A model whose compact `__call__` is `call(self, x)`, and its variables."""

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            return call(self, x)

    rng = np.random.default_rng(1)

    def values(leaf):
        return jnp.asarray(rng.standard_normal(leaf.shape) / 2, leaf.dtype)

    shapes = jax.eval_shape(Model().init, jax.random.key(1), batch() if x is None else x)
    return Model(), jax.tree.map(values, shapes)


def two(self, x):
    return nn.Dense(3, name="b")(nn.Dense(4, name="a")(x))


def distance(found, expected):
    found, expected = (np.asarray(a, np.float64) for a in (found, expected))
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def is_close(model, variables, x, formats="int8", limit=0.05):
    """Whether the quantised model differs from the float one, but not by much."""
    quantized = quantize_model(model, variables, x, formats)
    return 0 < distance(jax.jit(quantized.apply)(variables, x), jax.jit(model.apply)(variables, x)) < limit


def rows(name, clip=4.0):
    row = format_table([parse_format(name)], [clip]).row(0)
    return LayerFormats(row, row, jnp.float32(clip))


JITTED = nn.jit(nn.Dense)


def test_nn_jit_reuses_no_program_of_other_calls():
    model, variables = made(lambda self, x: nn.Dense(3, name="b")(JITTED(4, name="a")(x)))
    plain, _ = made(two)
    x = batch()
    exact = model.apply(variables, x)
    assert list(interception.profile_inputs(model, variables, x)) == ["a", "b"]
    assert list(interception.profile_inputs(model, variables, x)) == ["a", "b"]
    formats = quantize_model(model, variables, x, "int2").collection
    for quantizer in (Quantizer(), Quantizer(weight_clip=kernel_clip("per_tensor"))):
        found, expected = (
            jax.jit(functools.partial(apply_quantized, each, quantizer=quantizer))({**variables, "formats": formats}, x)
            for each in (model, plain)
        )
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(model.apply(variables, x), exact)


def looped(transform):
    def call(self, x):
        shared = nn.Dense(4, name="shared")
        y = nn.tanh(shared(10 * x))
        return transform(shared, transform(shared, y))

    return call


@pytest.mark.parametrize(
    "transform",
    [
        lambda m, y: nn.scan(
            lambda m, y, _: (m(y), None), variable_broadcast="params", split_rngs={"params": False}, length=1
        )(m, y, None)[0],
        nn.vmap(lambda m, y: m(y), variable_axes={"params": None}, split_rngs={}),
        nn.remat(lambda m, y: m(y)),
        nn.jit(lambda m, y: m(y)),
    ],
)
def test_calls_inside_and_outside_of_loops_are_profiled(transform):
    model, variables = made(looped(transform))
    x = batch()
    seen = []

    def keep(call, args, kwargs, context):
        if isinstance(context.module, nn.Dense):
            seen.append(np.asarray(args[0]))
        return call(*args, **kwargs)

    plain, _ = made(looped(lambda m, y: m(y)))
    with nn.intercept_methods(keep):
        plain.apply(variables, x)
    assert len(seen) == 3
    with pytest.warns(UserWarning, match="shared runs 3 times, on inputs whose root mean squares differ"):
        profile = interception.profile_inputs(model, variables, x)["shared"]
    np.testing.assert_allclose(profile.mean_square, np.mean([np.mean(each**2) for each in seen]), rtol=1e-5)
    np.testing.assert_allclose(profile.smallest, min(each.min() for each in seen), rtol=1e-5)
    np.testing.assert_allclose(interception.layer_operands(model, variables, x)["shared"].input, seen[0])


def test_operations_of_the_models_own_are_used():
    calls = []

    def own(left, right, dimensions, precision=None):
        calls.append(left.dtype)
        return jax.lax.dot_general(left, right, dimensions, precision=precision)

    def convolve(*args, **kwargs):
        calls.append(args[0].dtype)
        return jax.lax.conv_general_dilated(*args, **kwargs)

    def call(self, x):
        x = nn.Conv(4, (1,), conv_general_dilated=convolve, name="conv")(x[:, None])[:, 0]
        return nn.Dense(3, dot_general=own, name="dense")(x)

    model, variables = made(call)
    x = batch()
    formats = quantize_model(model, variables, x, "int8").collection
    calls.clear()
    y = apply_quantized(model, {**variables, "formats": formats}, x, quantizer=Quantizer(operands=jnp.bfloat16))
    # The second cannot be asked for float32 sums, so that its operands are float32.
    assert calls == [jnp.bfloat16, jnp.float32]
    assert distance(y, model.apply(variables, x)) < 0.05


def test_operations_with_a_state_get_values():
    """Flax's FP8 keeps the largest magnitudes that it saw: they are those of values, whatever the format."""
    model, variables = made(lambda self, x: nn.Dense(4, dot_general_cls=nn.Fp8DirectDotGeneralOp, name="fp8")(x))
    x, state = batch(), "_overwrite_with_gradient"
    variables[state] = jax.tree.map(jnp.ones_like, variables[state])
    quantized = quantize_model(model, variables, x, "int8")
    slopes = jax.jit(jax.grad(lambda v: quantized.apply(v, x).sum()))(variables)
    (seen,) = [
        leaf for path, leaf in jax.tree.leaves_with_path(slopes[state]) if "input_amax" in jax.tree_util.keystr(path)
    ]
    largest = np.abs(x).max()
    assert 0.9 * largest < seen.max() < 1.1 * largest


def test_a_promotion_of_the_models_own_is_kept():
    def promote(inputs, kernel, bias, *, dtype):
        del dtype
        return inputs, jnp.tril(kernel), bias

    model, variables = made(lambda self, x: nn.Dense(4, promote_dtype=promote, name="dense")(x))
    assert is_close(model, variables, batch(), limit=0.03)


def test_what_else_reads_a_kernel_sees_float_weights():
    def tied(self, x):
        layer = nn.Dense(4, name="layer")
        y = layer(x)
        kernel = self.variables["params"]["layer"]["kernel"]
        return y @ layer.variables["params"]["kernel"].T, jnp.sum(kernel**2), kernel

    model, variables = made(tied)
    _, decay, kernel = quantize_model(model, variables, batch(), "int2").apply(variables, batch())
    np.testing.assert_array_equal(kernel, variables["params"]["layer"]["kernel"])
    np.testing.assert_allclose(decay, np.sum(np.square(kernel)), rtol=1e-6)


def test_collections_of_the_model_and_every_form_of_mutable():
    def call(self, x):
        count = self.variable("observed", "count", lambda: jnp.zeros(()))
        if self.is_mutable_collection("observed"):
            count.value += 1
        return two(self, x)

    model, variables = made(call)
    variables["observed"]["count"] = jnp.zeros(())
    x = batch()
    quantized = quantize_model(model, variables, x)
    plain = quantized.apply(variables, x)
    every = {**variables, "formats": quantized.collection, "calibration": interception.empty_calibration(["a", "b"])}
    for mutable, expected in (
        (True, {"params", "observed", "calibration"}),
        (DenyList(["params"]), {"observed", "calibration"}),
        (DenyList(["params", "calibration"]), {"observed"}),
        (["calibration", "observed"], {"observed", "calibration"}),
        (["intermediates"], {"intermediates"}),
        ("observed", {"observed"}),
        ([], set()),
    ):
        y, updated = apply_quantized(
            model, every, x, mutable=mutable, capture_intermediates="intermediates" in expected
        )
        assert set(updated) == expected
        np.testing.assert_array_equal(y, plain)
        if "calibration" in expected:
            assert interception.stacked_calibration(["a"], updated["calibration"]).batches == 1
        if "observed" in expected:
            assert updated["observed"]["count"] == 1
        if "intermediates" in expected:
            np.testing.assert_array_equal(updated["intermediates"]["b"]["__call__"][0], y)


def test_interceptors_around_see_values_and_interceptors_within_are_refused():
    def tap(call, args, kwargs, context):
        y = call(*args, **kwargs)
        seen[context.module.path] = y
        return y

    seen = {}
    model, variables = made(two)
    x = batch()
    quantized = quantize_model(model, variables, x)
    with nn.intercept_methods(tap):
        y = quantized.apply(variables, x)
    np.testing.assert_array_equal(seen["b",], y)

    def within(self, x):
        with nn.intercept_methods(tap):
            return nn.Dense(3, name="a")(x)

    model, variables = made(within)
    quantized = quantize_model(model, variables, x)
    with pytest.raises(ValueError, match="a: the model itself intercepts the calls of this layer"):
        quantized.apply(variables, x)


def test_complex_layers_and_layers_that_compute_otherwise_are_refused():
    x = batch()
    model, variables = made(lambda self, x: nn.Dense(3, param_dtype=jnp.complex64, name="a")(x))
    with pytest.raises(ValueError, match="a computes with complex values"):
        quantize_model(model, variables, x).apply(variables, x)

    class Otherwise(nn.Dense):
        @nn.compact
        def __call__(self, x):
            return x @ self.param("kernel", self.kernel_init, (4, 3))

    model, variables = made(lambda self, x: nn.Dense(2, name="b")(Otherwise(3, name="a")(x)))
    with pytest.raises(RuleError, match="a holds a kernel, but no layer that can be quantised ran there"):
        quantize_model(model, variables, x)
    with pytest.raises(interception.UnknownLayerError, match="at a"):
        apply_quantized(model, {**variables, "formats": {"a": rows("int4")}}, x)


def test_other_lifted_transforms_and_shared_scopes():
    class Wrapped(nn.Module):
        def setup(self):
            self.inner = nn.Dense(4)
            nn.share_scope(self, self.inner)

        def __call__(self, x):
            return self.inner(x)

    def call(self, x):
        def forward(module, x):
            return module(x)

        x = Wrapped(name="wrapped")(x)
        x = nn.custom_vjp(forward, lambda m, x: nn.vjp(forward, m, x), lambda pullback, y: pullback(y))(
            nn.Dense(4, name="vjp"), x
        )
        doubled = nn.map_variables(
            nn.Dense, trans_in_fn=lambda v: jax.tree.map(lambda leaf: 2 * leaf, v), init=self.is_initializing()
        )
        return doubled(3, name="doubled")(x)

    model, variables = made(call)
    x = batch()
    quantized = quantize_model(model, variables, x, "int8")
    assert list(quantized.formats) == ["wrapped", "vjp", "doubled"]
    assert is_close(model, variables, x)
    slopes, exact = (jax.jit(jax.grad(lambda v, f=f: f(v, x).sum()))(variables) for f in (quantized.apply, model.apply))
    jax.tree.map(lambda a, b: np.testing.assert_array_less(distance(a, b), 0.1), slopes, exact)


def test_empty_batches():
    model, variables = made(two)
    quantized = quantize_model(model, variables, batch())
    assert quantized.apply(variables, batch()[:0]).shape == (0, 3)
    profile = interception.LayerCalibration.empty().update(jnp.zeros((0, 4)))
    assert profile.batches == 0


@pytest.mark.parametrize("operands", [jnp.float32, jnp.bfloat16])
def test_integer_sums_are_exact_whatever_the_type_of_the_layer(operands):
    """Codes of 512 inputs, whose sum is no float16 and no bfloat16; one example or many."""
    x, kernel = batch(16, 512), batch(512, 6, seed=1)

    @jax.jit
    def apply(params, x):
        def call(self, x):
            del self
            kinds = {"float16": jnp.float16, "bfloat16": jnp.bfloat16, "float32": jnp.float32}
            return {name: nn.Dense(6, dtype=kind, name=name)(x) for name, kind in kinds.items()}

        class Model(nn.Module):
            __call__ = nn.compact(call)

        variables = {"params": params, "formats": dict.fromkeys(params, rows("int8", 1.0))}
        quantizer = Quantizer(weight_clip=lambda kernel, row: row.clip_multiple, operands=operands)
        return apply_quantized(Model(), variables, x, quantizer=quantizer)

    params = {name: {"kernel": kernel, "bias": jnp.arange(6.0)} for name in ("float16", "bfloat16", "float32")}
    found = apply(params, x)
    left, right = (np.asarray(numerics.quantize_to_grid(a, "int8", clip=1.0)[0], np.float64) for a in (x, kernel))
    sums = left @ right
    assert np.abs(sums).max() > 65504
    scale = np.float32(1 / 127) * np.float32(1 / 127)
    expected = (sums.astype(np.float32) * scale + np.arange(6, dtype=np.float32)).astype(np.float32)
    np.testing.assert_allclose(found["float32"], expected, rtol=3e-7, atol=1e-6)
    for name in ("float16", "bfloat16"):
        np.testing.assert_array_equal(found[name], np.asarray(found["float32"]).astype(name))
    for row in (0, 7):
        np.testing.assert_array_equal(apply(params, x[row : row + 1])["float32"][0], found["float32"][row])


def rounded(call, *args):
    """`call(*args)` with the operands of products and convolutions rounded to bfloat16, as accelerators round them."""

    def run(jaxpr, constants, values):
        known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*constants, *values], strict=True))

        def read(atom):
            return known[atom] if isinstance(atom, jax.extend.core.Var) else atom.val

        for equation in jaxpr.eqns:
            inputs = [read(atom) for atom in equation.invars]
            if equation.primitive.name in ("dot_general", "conv_general_dilated"):
                inputs = [jax.lax.reduce_precision(value, 8, 7) for value in inputs]
            if inner := equation.params.get("jaxpr"):
                outputs = run(inner.jaxpr, inner.consts, inputs)
            else:
                outputs = equation.primitive.bind(*inputs, **equation.params)
                outputs = outputs if equation.primitive.multiple_results else [outputs]
            known.update(zip(equation.outvars, outputs, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    closed = jax.make_jaxpr(call)(*args)
    return jax.jit(lambda leaves: run(closed.jaxpr, closed.consts, leaves))(jax.tree.leaves(args))


def test_accelerators_multiply_codes_exactly_but_not_values():
    def call(self, x):
        return [
            nn.Conv(3, (3, 3), name="conv")(x),
            nn.ConvTranspose(3, (3, 3), name="up")(x),
            nn.Dense(3, name="dense")(x),
        ]

    x = batch(2, 4, 4, 4)
    model, variables = made(call, x)
    formats = quantize_model(model, variables, x, {"conv": "int8", ".*": "e4m3"}).collection
    for estimator, exact in ((gradients.straight_through, True), (gradients.straight_through.__call__, False)):

        def apply(formats, x, estimator=estimator):
            return apply_quantized(model, {**variables, "formats": formats}, x, quantizer=Quantizer(estimator))

        for found, expected in zip(rounded(apply, formats, x), jax.jit(apply)(formats, x), strict=True):
            assert (distance(found, expected) < 1e-6) == exact
            assert (distance(found, expected) > 1e-4) != exact


def test_blocks_are_multiplied_in_float32_as_values():
    x = batch(8, 64)
    model, variables = made(lambda self, x: nn.Dense(3, use_bias=False, dtype=jnp.bfloat16, name="layer")(x), x)
    quantized = quantize_model(model, variables, x, "int4 per_block_32")
    clips = Quantizer(weight_clip_of=quantized.quantizer.weight_clip_of, operands=jnp.bfloat16)
    row = quantized.collection["layer"]
    kernel = np.asarray(variables["params"]["layer"]["kernel"])
    halves = []
    for half in np.split(kernel, 2):
        clip = row.weights.clip_multiple * np.sqrt(np.mean(half**2, 0))
        halves.append(np.asarray(aqt_like.quantize(half, "int4", clip=clip)))
    expected = np.asarray(aqt_like.quantize(x, "int4", clip=row.input_clip)) @ np.concatenate(halves)
    apply = jax.jit(functools.partial(apply_quantized, model, quantizer=clips))
    y = apply({**variables, "formats": quantized.collection}, x)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(y, np.float32), expected, rtol=4e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["e7m0", "e7m1", "e6m1"])
def test_products_of_wide_exponents_stay_in_range(name):
    model, variables = made(lambda self, x: nn.Dense(3, use_bias=False, name="layer")(x))
    x = batch()
    clip = Quantizer(weight_clip=lambda kernel, row: row.clip_multiple)
    kernel = variables["params"]["layer"]["kernel"]
    left, right = (np.asarray(aqt_like.quantize(a, name, clip=4.0), np.float64) for a in (x, kernel))

    def apply(params, x):
        return apply_quantized(model, {"params": params, "formats": {"layer": rows(name)}}, x, quantizer=clip)

    np.testing.assert_allclose(apply(variables["params"], x), left @ right, rtol=1e-5, atol=1e-6)
    to_kernel = jax.grad(lambda params: apply(params, x).sum())(variables["params"])["layer"]["kernel"]
    np.testing.assert_allclose(to_kernel, np.broadcast_to(left.sum(0)[:, None], to_kernel.shape), rtol=1e-5)


def test_thresholds_learn_by_the_gradient_of_the_float_layer():
    """A plain function, as for PACT: saturated inputs pull at the threshold."""

    def learned(x, row, clip):
        kept = jnp.where(row.lowest < 0, jnp.maximum(x, -clip), jnp.maximum(x, 0))
        kept = jnp.minimum(kept, clip)
        return kept + jax.lax.stop_gradient(gradients.straight_through(x, row, clip) - kept)

    model, variables = made(lambda self, x: nn.Dense(3, name="layer")(x))
    x, kernel = batch(), variables["params"]["layer"]["kernel"]

    def loss(clip):
        formats = {"layer": rows("int4")._replace(input_clip=clip)}
        return apply_quantized(model, {**variables, "formats": formats}, x, quantizer=Quantizer(learned)).sum()

    row = rows("int4").weights
    threshold = row.clip_multiple * np.sqrt(np.mean(np.square(kernel), 0))
    weights = np.asarray(aqt_like.quantize(kernel, "int4", clip=threshold))
    saturated = np.sign(x) * (np.abs(x) > 1.0)
    np.testing.assert_allclose(jax.grad(loss)(jnp.float32(1.0)), (saturated @ weights).sum(), rtol=1e-5)


def test_float16_models_of_unusual_size():
    half = {"dtype": jnp.float16, "param_dtype": jnp.float16}

    def call(self, x):
        return nn.Dense(10, name="b", **half)(nn.relu(nn.Dense(64, name="a", **half)(x)))

    x = batch(16, 64).astype(np.float16)
    model, variables = made(call, x)
    assert is_close(model, jax.tree.map(lambda leaf: leaf / 8, variables), 300 * x)
    small = jax.tree.map(lambda leaf: leaf * jnp.float16(1e-3), variables)
    assert is_close(model, small, 300 * x)


def test_whole_numbers_as_inputs():
    x = np.asarray(40 * np.abs(batch()), np.uint8)
    for kind in (np.uint8, np.int32):
        model, variables = made(lambda self, x: nn.Dense(3, name="layer")(x), x.astype(kind))
        assert is_close(model, variables, x.astype(kind), limit=0.02)
    images = np.random.default_rng(0).integers(0, 256, (2, 6, 6, 3)).astype(np.uint8)
    model, variables = made(lambda self, x: nn.Conv(3, (3, 3), name="layer")(x), images)
    assert is_close(model, variables, images, limit=0.02)


def test_each_output_channel_has_a_threshold_wherever_its_axis_is():
    """Channels of unlike size: under thresholds of another axis, small ones round to zero."""
    x = batch(8, 4, 4, 4)
    sizes = 10.0 ** jnp.linspace(-3, 0, 6)
    layers = {
        "up": (functools.partial(nn.ConvTranspose, 6, (3, 3), transpose_kernel=True), sizes[:, None]),
        "einsum": (functools.partial(nn.Einsum, (6, 4), "...d,od->...o"), sizes[:, None]),
        "dense": (functools.partial(nn.Dense, 6), sizes),
    }

    def call(self, x):
        del self
        return {name: layer(use_bias=False, name=name)(x) for name, (layer, _) in layers.items()}

    model, variables = made(call, x)
    for name, (_, scale) in layers.items():
        variables["params"][name]["kernel"] *= scale
    found = jax.jit(quantize_model(model, variables, x, "int8").apply)(variables, x)
    exact = jax.jit(model.apply)(variables, x)
    for name in layers:
        assert distance(found[name][..., 0], exact[name][..., 0]) < 0.03


def test_the_sign_comes_from_every_example_and_nan_batches_are_passed_over():
    x = np.abs(batch(16, 4))
    model, variables = made(two)
    signed = x * np.where(np.arange(16) % 4 == 1, -1, 1)[:, None]
    collection = interception.empty_calibration(["a", "b"])

    @jax.jit
    def profile(collection, x):
        return apply_quantized(model, {**variables, "calibration": collection}, x, mutable=["calibration"])[1]

    for each in (x, x.copy() * np.nan, signed, x):
        collection = profile(collection, each)["calibration"]
    found = interception.stacked_calibration(["a", "b"], collection)
    assert found.batches.tolist() == [3, 3]
    assert not found.never_negative.any()
    np.testing.assert_allclose(found.mean_square[0], np.mean(x**2), rtol=1e-5)
    assert (
        "NaN or infinite inputs of a, b: up to 1 of 4 batches"
        in interception.check_profile(["a", "b"], found, batches=4)[0]
    )


def test_layers_that_were_never_profiled_stay_in_float_and_are_named():
    paths = ["a", "b"]
    model, variables = made(two)
    profile = interception.stacked_calibration(paths, interception.empty_calibration(paths))
    with pytest.raises(interception.ProfileError, match="the input of a, b was never profiled"):
        interception.check_profile(paths, profile)
    formats = format_space(["int8"])
    state = format_choice.format_state(
        paths,
        format_choice.format_bank(formats, use_unsigned=True),
        format_choice.precomputed_clip_multiples(formats, 2, "gaussian", use_unsigned=True),
        jnp.zeros(2, jnp.int32),
        profile,
        jnp.asarray(True),
    )
    x = batch()
    assert distance(apply_quantized(model, {**variables, "formats": state}, x), model.apply(variables, x)) < 0.02


def test_misspelt_paths_are_errors():
    model, variables = made(two)
    x = batch()
    profiled = interception.empty_calibration([f"loop[{i}]" for i in range(3)])
    for path in ("loup[0]", "loop", "loop[3]", "loop[0,1]"):
        with pytest.raises(ValueError, match=r"loop"):
            interception.stacked_calibration([path], profiled)
    bank = format_choice.format_bank(format_space(["int8"]), use_unsigned=True)
    with pytest.raises(ValueError, match="no layer that can be quantised ran at c; there ran a, b"):
        format_choice.profiled_clip_multiples(["c"], bank, interception.layer_operands(model, variables, x))
    for wrong in ({"formats": {"c": rows("int4")}}, {"calibration": interception.empty_calibration(["c"])}):
        with pytest.raises(interception.UnknownLayerError, match=r"ran at c .* there ran a, b"):
            apply_quantized(model, {**variables, **wrong}, x, mutable=["calibration"])
    with pytest.raises(ValueError, match=r"a: formats with \(2,\) repetitions of a layer that no loop repeats"):
        repeated = jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), rows("int4"))
        apply_quantized(model, {**variables, "formats": {"a": repeated}}, x)


def test_factors_by_keyword():
    model, variables = made(
        lambda self, x: Product(name="product")(equation="bc,cd->bd", left=nn.Dense(4, name="a")(x), right=x.T)
    )
    x = batch()
    np.testing.assert_array_equal(interception.layer_operands(model, variables, x)["product"].weights, x.T)
    assert is_close(model, variables, x)


def test_a_loop_that_shares_parameters_inside_one_that_maps_them():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nn.RNN(nn.SimpleCell(4))(x), None

    def call(self, x):
        scan = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
        return scan(name="blocks")(x, None)[0]

    model, variables = made(call, batch(3, 5, 4))
    x = batch(3, 5, 4)
    quantized = quantize_model(model, variables, x, {r"\[0\]": "int8", r"\[1\]": "e4m3"})
    assert set(quantized.formats.values()) == {"int8", "e4m3"}
    assert distance(quantized.apply(variables, x), model.apply(variables, x)) < 0.1


@pytest.mark.parametrize("name", ["e6m1", "e7m0", "e5m2"])
def test_scales_are_far_from_underflow(name):
    """Values and gradients are about 1e-20, the product of the two scales of e7m0 would be 1e-58."""
    model, variables = made(lambda self, x: nn.Dense(3, name="a")(x))
    variables["params"]["a"]["kernel"] *= 1e-8
    x = batch() * 1e-12
    quantized = quantize_model(model, variables, x, name)
    assert distance(quantized.apply(variables, x) * 1e20, model.apply(variables, x) * 1e20) < 0.5
    slopes = jax.grad(lambda x: quantized.apply(variables, x).sum())(x)
    assert float(jnp.abs(slopes).max()) > 1e-10
