"""The short call against the long form, under transformations, and what it refuses."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import aqt_like
from aqt_like import clip_multiples, format_choice, interception, quantize_model
from aqt_like.formats import format_space, parse_format
from aqt_like.path_rules import RuleError


class Net(nn.Module):
    """With batch statistics, a layer that runs twice, and a product."""

    @nn.compact
    def __call__(self, x, train=True):
        x = nn.Conv(4, (3, 3), name="stem")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, name="norm")(x))
        shared = nn.Dense(4, name="shared")
        x = shared(nn.relu(shared(x))).reshape(len(x), -1, 4)
        x = interception.Product(name="mixture")("bqk,bkc->bqc", nn.softmax(x @ x.mT), x)
        return nn.Dense(3, name="head")(x.mean(1))


PATHS = ["stem", "shared", "mixture", "head"]


def images(count=8, seed=1):
    return jax.random.normal(jax.random.key(seed), (count, 4, 4, 2))


@pytest.fixture(scope="module")
def variables():
    return Net().init(jax.random.key(0), images(), train=False)


@pytest.fixture(scope="module")
def int4(variables):
    return quantize_model(Net(), variables, images(), train=False)


def dense(features=3, **settings):
    """A model of one layer, and its variables."""

    class One(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(features, name="layer", **settings)(x)

    return One(), One().init(jax.random.key(0), jnp.ones((1, 4)))


def long_form(variables, x, space, choice):
    """Formats by index, as a search chooses them."""
    formats = format_space(space)
    profiles = interception.profile_inputs(Net(), variables, x, train=False)
    rows = format_choice.format_state(
        PATHS,
        format_choice.format_bank(formats, use_unsigned=True),
        format_choice.precomputed_clip_multiples(formats, len(PATHS), "gaussian", use_unsigned=True),
        jnp.asarray(choice),
        jax.tree.map(lambda *leaves: jnp.stack(leaves), *(profiles[path] for path in PATHS)),
        jnp.asarray(True),
    )
    return interception.apply_quantized(Net(), {**variables, "formats": rows}, x, train=False)


def test_profiles_are_those_of_training_where_batches_are_small(variables):
    collections = {**variables, "calibration": interception.empty_calibration(PATHS)}
    _, seen = interception.apply_quantized(Net(), collections, images(), train=False, mutable=["calibration"])
    profiles = interception.profile_inputs(Net(), variables, images(), train=False)
    assert list(profiles) == PATHS
    for path in PATHS:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
            profiles[path],
            seen["calibration"][path]["input"],
        )


def test_one_format_equals_the_long_form_bit_for_bit(variables, int4):
    expected = long_form(variables, images(), "int_s", [0, 0, 0, 0])
    np.testing.assert_array_equal(int4.apply(variables, images(), train=False), expected)
    assert int4.formats == dict.fromkeys(PATHS, "int4")
    assert not np.allclose(expected, Net().apply(variables, images(), train=False))


def test_formats_by_path_equal_the_long_form_bit_for_bit(variables):
    rules = {"stem": "bf16", "^h": "int4/int8", ".*": "e4m3"}
    quantized = quantize_model(Net(), variables, images(), rules, train=False)
    expected = long_form(variables, images(), "bf16,int4/int8,e4m3", [0, 2, 2, 1])
    np.testing.assert_array_equal(quantized.apply(variables, images(), train=False), expected)
    assert quantized.formats == {"stem": "bf16", "shared": "e4m3", "mixture": "e4m3", "head": "int4/int8"}
    assert list(quantized.formats) == PATHS


def test_ignored_layers_compute_in_float(variables):
    x = images()
    quantized = quantize_model(Net(), variables, x, {"mixture|shared|stem": "ignore", ".*": "int2"}, train=False)
    assert list(quantized.formats) == ["head"]
    inside = interception.layer_operands(Net(), variables, x, train=False)["head"][0]
    head = {"params": {"layer": variables["params"]["head"]}}
    alone = quantize_model(dense()[0], head, inside, "int2")
    found = quantized.apply(variables, x, train=False)
    np.testing.assert_allclose(found, alone.apply(head, inside), rtol=1e-5, atol=1e-6)


def test_a_granularity_by_path():
    model, variables = dense()
    variables["params"]["layer"]["kernel"] *= jnp.asarray([1.0, 100.0, 1.0])
    x = jax.random.normal(jax.random.key(1), (8, 4))
    plain, coarse = (
        np.asarray(quantize_model(model, variables, x, what).apply(variables, x))
        for what in ("int4", {"layer": "int4 per_tensor"})
    )
    assert (coarse[:, [0, 2]] == 0).all()  # small columns round to zero beside 100
    assert (plain[:, [0, 2]] != 0).any()


def test_it_runs_under_jit(variables, int4):
    x = images(6, seed=3)
    expected = int4.apply(variables, x, train=False)
    jitted = jax.jit(int4.apply, static_argnames="train")(variables, x, train=False)
    np.testing.assert_allclose(jitted, expected, rtol=1e-4, atol=1e-5)


def test_it_runs_under_vmap():
    """Over examples; but for the second factor of a product, whose threshold is that of the whole batch."""
    model, variables = dense()
    x = jax.random.normal(jax.random.key(1), (8, 4))
    quantized = quantize_model(model, variables, x)
    mapped = jax.vmap(lambda example: quantized.apply(variables, example[None])[0])(x)
    np.testing.assert_allclose(mapped, quantized.apply(variables, x), rtol=1e-5, atol=1e-6)


def test_it_trains_with_batch_statistics(variables, int4):
    x, labels = images(32, seed=2), jnp.arange(32) % 3
    optimizer = optax.adam(0.02)

    @jax.jit
    def step(params, batch_stats, state):
        def loss(params):
            logits, updated = int4.apply({"params": params, "batch_stats": batch_stats}, x, mutable=["batch_stats"])
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), updated["batch_stats"]

        (value, batch_stats), slopes = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(slopes, state)
        return optax.apply_updates(params, updates), batch_stats, state, value

    params, batch_stats, state = variables["params"], variables["batch_stats"], optimizer.init(variables["params"])
    losses = []
    for _ in range(40):
        params, batch_stats, state, value = step(params, batch_stats, state)
        losses.append(value)
    assert losses[-1] < 0.9 * losses[0]
    assert not np.allclose(batch_stats["norm"]["mean"], variables["batch_stats"]["norm"]["mean"])


def test_profiling_in_training_mode_leaves_batch_statistics_alone(variables):
    before = jax.tree.map(np.array, variables)
    quantized = quantize_model(Net(), variables, (images(), True))
    jax.tree.map(np.testing.assert_array_equal, before, variables)
    assert list(quantized.formats) == PATHS


def test_every_value_of_the_batch_counts():
    model, variables = dense()
    x = np.full((40, 4), 0.5, np.float32)
    x[39] = -3.0
    seen = interception.profile_inputs(model, variables, x)["layer"]
    np.testing.assert_allclose(seen.mean_square, np.mean(x**2), rtol=1e-6)
    assert (seen.smallest, seen.batches) == (-3.0, 1)
    row = quantize_model(model, variables, x).collection["layer"]
    assert row.inputs.lowest == -7
    assert interception.LayerCalibration.empty().update(jnp.asarray(x)).smallest == -3.0

    (multiple,) = clip_multiples.precomputed_multiples([parse_format("int4")])
    np.testing.assert_allclose(row.input_clip, multiple * np.sqrt(np.mean(x**2)), rtol=1e-6)
    assert quantize_model(model, variables, x[:39]).collection["layer"].inputs.lowest == 0


def test_a_layer_that_runs_twice_is_profiled_twice(variables):
    inputs = []

    def keep(call, args, kwargs, context):
        if context.module.path == ("shared",) and context.method_name == "__call__":
            inputs.append(args[0])
        return call(*args, **kwargs)

    with nn.intercept_methods(keep):
        Net().apply(variables, images(), train=False)
    first, second = inputs
    seen = interception.profile_inputs(Net(), variables, images(), train=False)["shared"]
    np.testing.assert_allclose(seen.mean_square, (np.mean(first**2) + np.mean(second**2)) / 2, rtol=1e-5)
    louder = jax.tree.map(lambda leaf: leaf, variables)
    louder["params"]["shared"]["bias"] = louder["params"]["shared"]["bias"] + 50.0
    with pytest.warns(
        UserWarning, match=r"shared runs 2 times, on inputs whose root mean squares differ by a factor of"
    ):
        interception.profile_inputs(Net(), louder, images(), train=False)


def test_half_precision_is_profiled_in_float32():
    model, variables = dense()
    x = jnp.full((8, 4), 300.0, jnp.float16)  # whose square is no float16
    np.testing.assert_allclose(interception.profile_inputs(model, variables, x)["layer"].mean_square, 9e4)


def test_token_ids_and_other_arguments_pass_through():
    class Text(nn.Module):
        @nn.compact
        def __call__(self, tokens, mask, *, scale, train):
            x = nn.Embed(10, 4, name="embed")(tokens) * mask[..., None] * scale
            return nn.Dense(2, name="head")(nn.Dropout(0.5, deterministic=not train)(x))

    tokens, mask = np.arange(10).reshape(2, 5), np.ones((2, 5), bool)
    variables = Text().init(jax.random.key(0), tokens, mask, scale=2.0, train=False)
    call = {"train": True, "rngs": {"dropout": jax.random.key(1)}, "mutable": []}
    quantized = quantize_model(Text(), variables, (tokens, mask), "int8", scale=jnp.float32(2), **call)
    y = quantized.apply(variables, tokens, mask, scale=2.0, train=False)
    np.testing.assert_allclose(y, Text().apply(variables, tokens, mask, scale=2.0, train=False), atol=0.2)


class Lifted(nn.Module):
    """Layers inside lifted transforms."""

    @nn.compact
    def __call__(self, x):
        class Body(nn.Module):
            @nn.compact
            def __call__(self, x, _):
                return nn.Dense(4, name="inner")(x), None

        x, _ = nn.scan(Body, variable_axes={"params": 1}, split_rngs={"params": True}, length=4)(name="scan")(x, None)
        return nn.remat(nn.Dense)(4, name="remat")(x)


def test_each_repetition_in_a_loop_has_formats_of_its_own():
    x = jax.random.normal(jax.random.key(1), (5, 4))
    variables = Lifted().init(jax.random.key(0), x)
    mixed = quantize_model(Lifted(), variables, x, {r"inner\[0\]": "int2", "scan": "int8", ".*": "bf16"})
    repetitions = [f"scan/inner[{i}]" for i in range(4)]
    assert mixed.formats == dict(zip([*repetitions, "remat"], ["int2", "int8", "int8", "int8", "bf16"], strict=True))
    assert list(quantize_model(Lifted(), variables, x, {"scan": "ignore", ".*": "int4"}).formats) == ["remat"]
    with pytest.raises(RuleError, match=r"inner\[0\] and scan/inner\[1\] run in one loop: expected 'ignore'"):
        quantize_model(Lifted(), variables, x, {r"\[0\]": "ignore", ".*": "int4"})


@pytest.mark.parametrize(
    ("formats", "message"),
    [
        ({"stem": "bf16", "^h": "int4"}, r"no rule decides about shared, mixture: add '\.\*': 'FORMAT' or"),
        ({"stemm": "bf16", ".*": "int4"}, "rule 'stemm: bf16' matches no layer; near it are stem"),
        ({".*": "int4", "head": "int8"}, "rule 'head: int8' decides nothing"),
        ({".*": "int4,int8"}, "rule '.*: int4,int8': expected one format or 'ignore', got 2 formats"),
        ({".*": "per_tensor"}, "rule '.*: per_tensor': expected one format or 'ignore', got 0 formats"),
        ({"e": "int4 tie"}, "rule 'e: int4 tie': expected one format or 'ignore'; only a search can tie"),
        ("int99", "unknown number format 'int99': expected int2"),
        ("int_s", "unknown number format 'int_s'"),
        ("ignore", "the rules ignore every layer"),
        ("int4 per_channel", "mixture is a product, both of whose factors are clipped per tensor, not per_channel"),
        (["stem: int4"], r"formats=\['stem: int4'\]: expected a format, or a mapping"),
        ("int16", "no clip multiple for int16"),
        ("uint4", "uint4 cannot hold what is negative"),
    ],
)
def test_rules_that_cannot_be_followed_are_refused(variables, formats, message):
    with pytest.raises(ValueError, match=message):
        quantize_model(Net(), variables, images(), formats, train=False)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (images().at[0, 0, 0, 0].set(jnp.nan).at[1, 0, 0, 0].set(jnp.inf), r"2 of 256 values .* are NaN or infinite"),
        (images()[:0], r"an array of shape \(0, 4, 4, 2\) is empty"),
        ((), "batch of nothing: expected arrays"),
        (None, "batch of NoneType: expected arrays"),
    ],
)
def test_batches_that_tell_nothing_are_refused(variables, batch, message):
    with pytest.raises(ValueError, match=message):
        quantize_model(Net(), variables, batch, train=False)


def test_variables_that_do_not_fit_are_refused(variables, int4):
    message = r"no 'params' among the variables: expected what model.init returns, got \['batch_stats'"
    without = {"batch_stats": variables["batch_stats"]}
    with pytest.raises(ValueError, match=message):
        quantize_model(Net(), without, images(), train=False)
    with pytest.raises(ValueError, match=message):
        int4.apply(without, images(), train=False)
    with pytest.raises(ValueError, match="call it outside of jit"):
        jax.jit(lambda v: quantize_model(Net(), v, images(), train=False).apply(v, images()))(variables)
    infinite = jax.tree.map(lambda leaf: leaf, variables)
    infinite["params"]["stem"]["kernel"] = infinite["params"]["stem"]["kernel"] * 1e30
    with pytest.raises(RuleError, match=r"rule '\.\*: int4': shared has an input with NaN or infinite values"):
        quantize_model(Net(), infinite, images(), train=False)


def test_rounded_parameters_do_not_come_back(variables, int4):
    for mutable in (True, ["params"], ["batch_stats", "formats"]):
        with pytest.raises(ValueError, match="name collections, as in"):
            int4.apply(variables, images(), mutable=mutable)


def test_an_input_of_zeros_tells_no_threshold():
    model, variables = dense()
    with pytest.raises(RuleError, match=r"layer has an input of nothing but zeros .* put 'layer': 'ignore' first"):
        quantize_model(model, variables, jnp.zeros((3, 4)))
    assert quantize_model(model, variables, jnp.zeros((3, 4)), "bf16").formats == {"layer": "bf16"}


def test_models_without_layers_are_refused():
    class Scale(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x * self.param("scale", nn.initializers.ones, ())

    x = jnp.ones((2, 3))
    with pytest.raises(ValueError, match="Scale has no layer that can be quantised: expected one of Conv"):
        quantize_model(Scale(), Scale().init(jax.random.key(0), x), x)
    with pytest.raises(ValueError, match="Dense is itself a layer, without a path"):
        quantize_model(nn.Dense(2), nn.Dense(2).init(jax.random.key(0), x), x)


def test_kernels_that_would_silently_stay_in_float_are_refused():
    class Auxiliary(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            x = nn.Dense(4, name="main")(inputs=x)
            chosen = nn.cond(x.sum() > 0, lambda m, x: m(x), lambda m, x: -m(x), nn.Dense(4, name="branch"), x)
            return (chosen, nn.Dense(2, name="aux")(x)) if train else chosen

    x = jax.random.normal(jax.random.key(1), (2, 3, 4))
    variables = Auxiliary().init(jax.random.key(0), x, train=True)
    with pytest.raises(RuleError, match=r"rule '\.\*: int4': aux holds a kernel, but no layer that"):
        quantize_model(Auxiliary(), variables, x, train=False)
    with pytest.raises(RuleError, match=r"branch holds a kernel, but no layer .* \(in nn.cond"):
        quantize_model(Auxiliary(), variables, x, train=True)
    quantized = quantize_model(Auxiliary(), variables, x, {"branch": "ignore", ".*": "int4"}, train=True)
    assert quantized.formats == {"main": "int4", "aux": "int4"}
    assert not np.allclose(quantized.apply(variables, x, train=True)[0], Auxiliary().apply(variables, x, train=True)[0])


def test_it_prints_what_people_want_to_know(int4):
    assert "'stem': 'int4'" in repr(int4)
    assert "Array" not in repr(int4)
    assert isinstance(int4, aqt_like.QuantizedModel)
