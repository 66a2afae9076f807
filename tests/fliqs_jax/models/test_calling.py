"""How any model is called: what is found, told and refused, from traces alone."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from fliqs_jax.models.call_finding import called
from fliqs_jax.models.calling import FLAGS, CallError
from tests import called_networks

X = np.ones((2, 4), np.float32)
NORM = {"mean": (3,), "var": (3,)}


@struct.dataclass
class Output:
    hidden: jax.Array
    logits: jax.Array


def made(call):
    """A module whose compact `__call__` is a function."""
    return type("Made", (nn.Module,), {"__call__": nn.compact(call), "__module__": __name__})()


def moving(x, train, rate=0.5):
    """A layer, batch statistics that move in training, and dropout."""
    x = nn.BatchNorm(use_running_average=not train)(nn.Dense(3)(x))
    return nn.Dropout(rate)(x, deterministic=not train)


def argument(flag, in_training):
    scope = {"moving": moving, "given": (lambda value: value) if in_training else (lambda value: not value)}
    exec(f"def call(self, x, {flag}={not in_training}): return moving(x, given({flag}))", scope)
    return made(scope["call"])


def field(flag, in_training):
    def call(self, x):
        return moving(x, getattr(self, flag) == in_training)

    names = {flag: not in_training, "__annotations__": {flag: bool}, "__module__": __name__}
    return type("Field", (nn.Module,), {"__call__": nn.compact(call), **names})()


@pytest.mark.parametrize("make", [argument, field])
@pytest.mark.parametrize("flag", FLAGS)
def test_flags_of_the_mode(flag, make):
    model = called(make(flag, FLAGS[flag]), X)
    assert f"{flag}={'' if FLAGS[flag] else 'not '}train" in model.told
    assert (model.train_streams, model.inference_streams, model.doubts) == (("dropout",), (), ())
    variables = model.init(jax.random.key(0), X)
    assert jax.tree.map(jnp.shape, variables["batch_stats"]) == {"BatchNorm_0": NORM}
    inference = model.apply(variables, X)
    _, updated = model.apply(variables, X, train=True, mutable=["batch_stats"])
    assert not np.array_equal(updated["batch_stats"]["BatchNorm_0"]["mean"], [0, 0, 0])
    np.testing.assert_array_equal(model.apply(variables, X), inference)


def test_random_numbers_are_those_of_the_key():
    model = called(argument("train", True), np.ones((64, 4), np.float32))
    variables, x = model.init(jax.random.key(0), X), jnp.asarray(np.random.default_rng(0).normal(size=(64, 4)))

    def apply(**arguments):
        return np.asarray(model.apply(variables, x, train=True, mutable=["batch_stats"], **arguments)[0])

    one, same, other = (apply(rngs=jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert 0.3 < np.mean(one == 0) < 0.7
    assert not np.array_equal(one == 0, other == 0)
    with model.without_dropout():
        measured = apply()  # with the statistics of the batch
    assert np.all(measured != 0)
    np.testing.assert_allclose(2 * measured[one != 0], one[one != 0], rtol=1e-5)


def test_a_model_without_statistics_is_measured_in_inference():
    model = called(made(lambda self, x, train: nn.Dropout(0.5)(nn.Dense(3)(x), deterministic=not train)), X)
    variables = model.init(jax.random.key(0), X)
    np.testing.assert_array_equal(model.apply(variables, X, train=True), model.apply(variables, X))


def test_each_stream_has_its_own_numbers_and_loops_split_them():
    def step(module, carry, _):
        return carry, jax.random.normal(module.make_rng("noise"), ())

    def call(self, x):
        loop = nn.scan(step, variable_broadcast="params", split_rngs={"noise": True}, length=3)
        noise = loop(self, None, None)[1]
        others = [jax.random.normal(self.make_rng(name), ()) for name in ("one", "other")]
        return nn.Dense(3)(x) * 0 + jnp.stack([*noise, *others])[:3] + 0 * noise[0], jnp.stack([*noise, *others])

    model = called(made(call), X, output="1")
    assert model.train_streams == ("noise", "one", "other")
    assert "in both modes: noise, one, other" in model.told
    numbers = model.apply(model.init(jax.random.key(0), X), X, train=True, rngs=jax.random.key(3), mutable=[])[0]
    assert len(np.unique(numbers)) == 5


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        (X, "Made(x, mask=None, train=train)"),
        ((X, X), "Made(x, mask, train=train)"),
        ({"x": X, "mask": X}, "Made(x, mask, train=train)"),
        ({"x": X}, "Made(x, mask=None, train=train)"),
    ],
)
def test_inputs_are_arguments(inputs, told):
    def call(self, x, mask, *, train):
        return nn.Dense(3)(x if mask is None else x * mask)

    model = called(made(call), inputs)
    assert model.told == told
    assert model.apply(model.init(jax.random.key(0), inputs), inputs).shape == (2, 3)


@pytest.mark.parametrize("inputs", [(X, X), {"x": X, "mask": X}])
def test_a_flag_before_inputs_takes_none_of_them(inputs):
    def call(self, deterministic, x, mask):
        return nn.Dropout(0.5)(nn.Dense(3)(x * mask), deterministic=deterministic)

    model = called(made(call), inputs)
    assert model.told == "Made(x, mask, deterministic=not train); random numbers in training: dropout"
    assert model.apply(model.init(jax.random.key(0), inputs), inputs).shape == (2, 3)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"x": X, "train": X}, "the inputs hold train, which is the flag of the mode"),
        ({"x": X, "mask": X}, "; mask is no argument of its. A dict of inputs is arguments by name"),
    ],
)
def test_inputs_of_other_names_are_told(inputs, message):
    with pytest.raises(CallError, match=message):
        called(made(lambda self, x, train: nn.Dense(3)(x)), inputs)


def test_other_names_are_one_argument():
    model = called(made(lambda self, batch: nn.Dense(3)(batch["a"] + batch["b"])), {"a": X, "b": X})
    assert model.told == "Made(batch), without a flag of the mode"


@pytest.mark.parametrize(
    ("returned", "output", "place"),
    [
        (lambda y: y, "", ""),
        (lambda y: (y, None), "", "0"),
        (lambda y: [y, {"a": y}], "", "0"),
        (lambda y: {"hidden": 2 * y, "logits": y}, "", "logits"),
        (lambda y: Output(2 * y, y), "", "logits"),
        (lambda y: ({"logits": y}, 2 * y), "", "0.logits"),
        (lambda y: {"a": {"b": (2 * y, y)}}, "a.b.1", "a.b.1"),
        (lambda y: {0: 2 * y, 1: y}, "1", "1"),
    ],
)
def test_logits_are_found(returned, output, place):
    model = called(made(lambda self, x: returned(nn.Dense(3)(x))), X, output=output)
    assert ("logits: output" in model.told, model.told.endswith(f"logits: output {place}")) == (bool(place),) * 2
    variables = model.init(jax.random.key(0), X)
    np.testing.assert_allclose(
        model.apply(variables, X), nn.Dense(3).apply({"params": variables["params"]["Dense_0"]}, X), rtol=1e-6
    )


def test_variables_of_all_kinds_are_found():
    inputs = called_networks.sentences().train.part(slice(0, 2))[0]
    model = called(called_networks.Sentences(), inputs)
    assert model.told == (
        "Sentences(ids, mask, deterministic=not train); random numbers in training: dropout, drop_path; collections: "
        "cache; axis batch: the batch; logits: output logits"
    )
    variables = model.init(jax.random.key(0), inputs)
    assert isinstance(variables["params"]["up"]["kernel"], jax.Array)  # no box
    mutable = ["batch_stats", "cache"]
    _, updated = model.apply(variables, inputs, train=True, rngs=jax.random.key(1), mutable=mutable)
    assert updated["cache"]["calls"] == 1


def test_an_adapter_leaves_paths_alone():
    inputs = called_networks.named_sequences().train.part(slice(0, 2))[0]
    model = called(called_networks.Raw(), inputs, adapter=called_networks.call_raw)
    assert model.told == "call_raw(Raw, inputs, train); random numbers in training: dropout"
    assert set(model.init(jax.random.key(0), inputs)["params"]) == {"encoder", "head"}


@pytest.mark.parametrize(
    ("call", "doubt"),
    [
        (lambda self, x, deterministic: moving(x, False), "its batch statistics never move: all nn.BatchNorm use"),
        (lambda self, x: nn.Dropout(0.5, deterministic=True)(nn.Dense(3)(x)), "its dropout never drops"),
        (lambda self, x: nn.Dropout(0.5, deterministic=False)(nn.Dense(3)(x)), "it drops in inference, too"),
    ],
)
def test_doubts_are_told(call, doubt):
    model = called(made(call), X)
    assert any(doubt in each for each in model.doubts)
    assert any(f"doubtful: {doubt}" in remark for remark in model.remarks())


def test_sown_losses_are_doubtful():
    def call(self, x):
        self.sow("losses", "balance", jnp.sum(x))
        self.sow("intermediates", "x", x)
        return nn.Dense(3)(x)

    model = called(made(call), X)
    assert (model.collections, model.doubts) == (
        (),
        ("what it collects in losses is in no loss: add it to the output",),
    )


@pytest.mark.parametrize(
    ("call", "output", "message"),
    [
        (
            lambda self, x: nn.BatchNorm(use_running_average=False)(nn.Dense(3)(x)),
            "",
            r"Made\(x\), without a flag of the mode, on float32\[2, 4\]: it changes variables in inference: Cannot .*"
            "batch_stats.* flag of the mode: train, training, is_training, deterministic$",
        ),
        (
            lambda self, x, y: nn.Dense(3)(x + y),
            "",
            r"Made\(x, y=None\).*TypeError: .* by name.*config.apply",
        ),
        (lambda self, x: {"a": x}, "", "returns a dict of a: say which part holds the logits by config.output"),
        (lambda self, x: {"a": x}, "b", "output='b': the model returns a dict of a there"),
        (lambda self, x: (nn.Dense(3)(x),), "1", r"output='1': the model returns a tuple of an array \[2, 3\] there"),
        (lambda self, x: (None, x), "", r"returns a tuple of None, an array \[2, 4\]: say which part"),
        (lambda self, x: (x, {"a": x}), "1", "output='1': the model returns a dict of a there, expected an array"),
        (lambda self, x: x, "T", r"output='T': the model returns an array \[2, 4\] there"),
        (lambda self, x: nn.Dense(3)(x.reshape(3, -1)), "", r"on float32\[2, 4\]: TypeError: cannot reshape"),
    ],
)
def test_what_cannot_be_called_is_refused(call, output, message):
    with pytest.raises(CallError, match=message):
        called(made(call), X, output=output)
