"""Networks with weights in PyTorch's naming give what torchvision's and timm's own networks give.

`golden/make_torch_outputs.py` ran those once, with weights that are a function of their names, and stored the logits.
"""

import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import serialization, traverse_util
from golden import make_torch_outputs
from safetensors.numpy import load_file, save_file

from fliqs_jax import models
from fliqs_jax.models import inception, pretrained
from fliqs_jax.models.blocks import ConvNorm

GOLDEN = pathlib.Path(__file__).parents[2] / "golden" / "torch_outputs.npz"
RUN = ("resnet18", "resnet50", "mobilenetv2", "efficientnet_b0", "inception_v3", "deit_ti16")


def build(name, **settings):
    if name.startswith("resnet"):
        settings["project_first"] = False
    return models.create(name, **({"classes": 1000} | settings))


def variables_of(model, size):
    return jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, size, size, 3)), train=False))


def torch_shape(shape, leaf):
    if leaf != "kernel":
        return shape
    return (shape[3], shape[2], shape[0], shape[1]) if len(shape) == 4 else shape[::-1]


def write_weights(path, name, variables):
    """A file as torchvision or timm would save it, of the weights that the golden outputs were made with."""
    tensors = {}
    for (_, *place), leaf in traverse_util.flatten_dict(variables).items():
        torch_name = pretrained.torch_name(name, tuple(place))
        tensors[torch_name] = make_torch_outputs.weights(torch_name, torch_shape(leaf.shape, place[-1]))
    save_file(tensors, path)
    return len(tensors)


@pytest.mark.parametrize("name", RUN)
def test_outputs_are_those_of_the_real_networks(name, tmp_path):
    size = make_torch_outputs.SIZES[name]
    model = build(name)
    shapes = variables_of(model, size)
    count = write_weights(tmp_path / "weights.safetensors", name, shapes)
    assert count == len(jax.tree.leaves(shapes))  # no two variables share a name
    variables, kept = pretrained.load(tmp_path / "weights.safetensors", name, shapes)
    assert kept == []
    logits = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, make_torch_outputs.image(size))[0]
    expected = np.load(GOLDEN)[name]
    assert np.abs(logits - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("name", [n for n in make_torch_outputs.SIZES if n not in RUN])
def test_names_of_the_others_are_all_different(name, tmp_path):
    shapes = variables_of(build(name), make_torch_outputs.SIZES[name])
    assert write_weights(tmp_path / "weights.safetensors", name, shapes) == len(jax.tree.leaves(shapes))


def test_a_classifier_of_other_classes_stays_as_it_is(tmp_path):
    many, few = build("mobilenetv2", width=0.25), build("mobilenetv2", width=0.25, classes=7)
    write_weights(tmp_path / "weights.safetensors", "mobilenetv2", variables_of(many, 32))
    start = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5, leaf.dtype), variables_of(few, 32))
    variables, kept = pretrained.load(tmp_path / "weights.safetensors", "mobilenetv2", start)
    assert kept == ["classifier/bias", "classifier/kernel"]
    np.testing.assert_array_equal(variables["params"]["classifier"]["kernel"], start["params"]["classifier"]["kernel"])


def test_what_does_not_fit_is_told(tmp_path):
    path = tmp_path / "weights.safetensors"
    model = build("mobilenetv2", width=0.25)
    shapes = variables_of(model, 32)
    with pytest.raises(pretrained.PretrainedError, match="cannot read weights from"):
        pretrained.load(path, "mobilenetv2", shapes)
    path.write_bytes(b"nonsense")
    with pytest.raises(pretrained.PretrainedError, match="cannot read weights from"):
        pretrained.load(path, "mobilenetv2", shapes)
    write_weights(path, "mobilenetv2", shapes)
    with pytest.raises(pretrained.PretrainedError, match=r"'features.1.conv.0.1.running_mean' in .* has shape \(8,\)"):
        pretrained.load(path, "mobilenetv2", variables_of(build("mobilenetv2", width=0.5), 32))
    save_file({f"module.{name}": values for name, values in load_file(path).items()}, path)
    with pytest.raises(pretrained.PretrainedError, match=r"it has 'module\..*': init_prefix is what it has before"):
        pretrained.load(path, "mobilenetv2", shapes)
    write_weights(path, "mobilenetv2", shapes)
    deeper = {f"features.19.{i}.weight": np.ones(3, np.float32) for i in range(5)}
    with pytest.raises(pretrained.PretrainedError, match="holds 5 tensors that mobilenetv2 has no variable for"):
        pretrained.load(add_to(path, deeper), "mobilenetv2", shapes)
    write_weights(path, "mobilenetv2", shapes)
    pretrained.load(add_to(path, {"features.0.1.num_batches_tracked": np.asarray(3)}), "mobilenetv2", shapes)
    negative = {"features.0.1.running_var": np.full(8, -1, np.float32)}
    with pytest.raises(pretrained.PretrainedError, match=r"'features.0.1.running_var' in .* holds a negative variance"):
        pretrained.load(add_to(path, negative), "mobilenetv2", shapes)
    with pytest.raises(
        pretrained.PretrainedError, match=r"has no 'layer1.0.bn1.running_mean', which stage1_block1/conv1/norm/mean"
    ):
        pretrained.load(path, "resnet18", variables_of(build("resnet18"), 32))
    with pytest.raises(pretrained.PretrainedError, match="no PyTorch names are known for 'recommender'"):
        pretrained.torch_name("recommender", ("classifier", "kernel"))


def test_flaxs_own_names_serve_any_network(tmp_path):
    model = models.create("recommender", classes=1, width=0.1, rank=4, buckets=5)
    there, here = (model.init(jax.random.key(seed), jnp.zeros((1, 39)), train=False) for seed in (1, 2))
    pretrained.save(tmp_path / "w.safetensors", there)
    found, kept = pretrained.load(tmp_path / "w.safetensors", "my.module:network", here)
    jax.tree.map(np.testing.assert_array_equal, found, there)
    assert kept == []
    pretrained.save(tmp_path / "w.safetensors", {"params": {"classifier": there["params"]["classifier"]}})
    with pytest.raises(pretrained.PretrainedError, match=r"has no 'params/category1/embedding', which"):
        pretrained.load(tmp_path / "w.safetensors", "recommender", here)


class Tempered(nn.Module):
    """Has a scalar, types that NumPy lacks, and a whole number among its parameters."""

    @nn.compact
    def __call__(self, x):
        kinds = {"temperature": jnp.float32, "small": jnp.float8_e4m3fn, "half": jnp.bfloat16, "step": jnp.int32}
        shapes = {"small": (4, 3)}
        values = {
            name: self.param(name, lambda _, shape, kind: jnp.full(shape, 3, kind), shapes.get(name, ()), kind)
            for name, kind in kinds.items()
        }
        return nn.Dense(3, name="d")(x) * values["temperature"]


def test_what_is_saved_is_loaded(tmp_path):
    path = tmp_path / "w.safetensors"
    here = Tempered().init(jax.random.key(0), jnp.ones((1, 4)))
    there = jax.tree.map(np.asarray, Tempered().init(jax.random.key(1), jnp.ones((1, 4))))
    there["params"]["temperature"] = np.asarray(0.25, np.float32)
    there["params"]["d"]["kernel"] = np.arange(24, dtype=np.float32).reshape(3, 8).T[::2]  # not contiguous
    there["params"]["d"]["bias"] = np.arange(3, dtype=">f4")
    pretrained.save(path, {**there, "calibration": {"d": np.ones(3)}})
    found, kept = pretrained.load(path, "own", here)
    jax.tree.map(np.testing.assert_array_equal, found, there)
    assert kept == []
    assert found["params"]["small"].dtype == jnp.float8_e4m3fn
    contents = bytearray(path.read_bytes())
    contents[-1] ^= 1
    path.write_bytes(contents)
    with pytest.raises(pretrained.PretrainedError, match=r"cannot read weights from .*its checksum differs"):
        pretrained.load(path, "own", here)
    for wrong in ({}, {"params": {"a": {"b": np.ones(1)}, "a/b": np.ones(1)}}):
        with pytest.raises(pretrained.PretrainedError, match="expected params, in which no two"):
            pretrained.save(path, wrong)


def test_partitioned_variables_keep_their_boxes(tmp_path):
    kernel = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
    model = nn.Dense(3, kernel_init=kernel)
    there, here = (model.init(jax.random.key(seed), jnp.ones((1, 4))) for seed in (1, 2))
    pretrained.save(tmp_path / "w.safetensors", there)
    found, _ = pretrained.load(tmp_path / "w.safetensors", "own", here)
    assert found["params"]["kernel"].names == (None, "model")
    jax.tree.map(np.testing.assert_array_equal, found, there)


NESTED = {"encoder": {"d": {"kernel": np.full((4, 3), 2, np.float32), "bias": np.full(3, 5, np.float32)}}}
ADAM = {"0": {"mu": np.zeros(3, np.float32)}}


@pytest.mark.parametrize(
    "tree",
    [
        NESTED,
        {"params": NESTED, "batch_stats": {}},
        {"params": NESTED, "opt_state": ADAM, "step": np.asarray(3)},
        {"params": {"params": NESTED}, "opt_state": ADAM},
        {"params": {"encoder": {"d": {**NESTED["encoder"]["d"], "kernel": {"value": np.full((4, 3), 2, np.float32)}}}}},
    ],
)
@pytest.mark.parametrize("kind", ["msgpack", "orbax", "manager"])
def test_weights_in_msgpack_and_orbax_are_loaded(kind, tree, tmp_path):
    here = {"params": {"d": nn.Dense(3).init(jax.random.key(0), jnp.ones((1, 4)))["params"]}}
    path = tmp_path / ("weights.msgpack" if kind == "msgpack" else "checkpoint")
    if kind == "msgpack":
        path.write_bytes(serialization.msgpack_serialize(tree))
    else:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            checkpointer.save((path / "default" if kind == "manager" else path).absolute(), tree)
    found, kept = pretrained.load(path, "own", here, prefix="encoder")
    jax.tree.map(np.testing.assert_array_equal, found["params"], NESTED["encoder"])
    assert kept == []
    assert pretrained.load(path, "own", here, prefix="params/encoder/")[1] == []
    with pytest.raises(
        pretrained.PretrainedError, match="has no 'params/d/bias', which d/bias of own needs; it has 'p"
    ):
        pretrained.load(path, "own", here)
    with pytest.raises(pretrained.PretrainedError, match=r"init_prefix='bert': .* has no such names, but params/enc"):
        pretrained.load(path, "own", here, prefix="bert")


def test_what_starts_anew_is_named(tmp_path):
    here = {"params": {"d": nn.Dense(2).init(jax.random.key(0), jnp.ones((1, 4)))["params"], "new": jnp.ones(2)}}
    path = stored(tmp_path / "w.safetensors", **{"params/cls/bias": np.ones(9, np.float32)})
    expressions = ["^d/kernel", "^new", "bias", "^cls/"]
    found, kept = pretrained.load(path, "own", here, anew=expressions)
    jax.tree.map(np.testing.assert_array_equal, found, here)
    assert kept == ["d/bias", "d/kernel", "new"]
    with pytest.raises(
        pretrained.PretrainedError, match=r"has shape \(3,\), d/bias needs \(2,\); init_anew names what"
    ):
        pretrained.load(path, "own", here, anew=["^d/kernel", "^new", "cls"])
    with pytest.raises(pretrained.PretrainedError, match=r"holds 1 tensors .*such as params/cls/bias"):
        pretrained.load(path, "own", here, anew=["^d/", "^new"])
    with pytest.raises(pretrained.PretrainedError, match="init_anew: haed is in no path of own or of"):
        pretrained.load(path, "own", here, anew=[*expressions, "haed"])
    with pytest.raises(pretrained.PretrainedError, match=r"init_anew='\(': expected a regular expression: "):
        pretrained.load(path, "own", here, anew=["("])


@pytest.mark.parametrize(
    ("name", "contents", "message"),
    [
        ("w.msgpack", b"\x81nonsense", "expected a file of flax.serialization: "),
        ("w.msgpack", b"\xc0", "it holds a NoneType"),
        ("checkpoint_3", b"\x81\xa6params\x80", r"expected safetensors, or Flax's msgpack, called \*.msgpack: "),
        ("w", None, "expected the folder of one orbax checkpoint: it is none, and holds the folders 3"),
    ],
)
def test_other_files_are_told(name, contents, message, tmp_path):
    path = tmp_path / name
    path.write_bytes(contents) if contents else (path / "3").mkdir(parents=True)
    with pytest.raises(pretrained.PretrainedError, match=f"cannot read weights from .*{message}"):
        pretrained.load(path, "own", {"params": {}})


def stored(path, **tensors):
    save_file({"params/d/kernel": np.ones((4, 3), np.float32), "params/d/bias": np.ones(3, np.float32)} | tensors, path)
    return path


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        (
            "params/e/kernel",
            np.ones(2, np.float32),
            "holds 1 tensors that own has no variable for, such as params/e",
        ),
        ("optimizer/d", np.ones(2, np.float32), "such as optimizer/d: expected a file of this network"),
        ("params/d/bias", np.asarray([1, np.nan, 1], np.float32), "'params/d/bias' in .* holds NaN or infinity"),
        ("params/d/bias", np.asarray([1, 1e300, 1]), "'params/d/bias' in .* holds NaN or infinity as float32"),
        (
            "params/d/bias",
            np.ones(3, np.int32),
            "'params/d/bias' in .* is int32: expected float32, or others of its",
        ),
        ("params/d/bias", np.ones(3, bool), "is bool: expected float32"),
        (
            "params/d/bias",
            np.ones(3, ml_dtypes.float8_e4m3fn),
            "'params/d/bias' is of type F8_E4M3: expected numbers",
        ),
        ("params/d/bias", np.ones(1, np.float32), r"has shape \(1,\), d/bias needs \(3,\)"),
    ],
)
def test_weights_that_are_not_those_of_the_network_are_refused(name, values, message, tmp_path):
    variables = jax.eval_shape(nn.Dense(3, name="d").init, jax.random.key(0), jnp.ones((1, 4)))
    variables = {"params": {"d": variables["params"]}}
    ignored = {"calibration/d/x": np.ones(2, np.int32)}
    pretrained.load(stored(tmp_path / "w.safetensors", **ignored), "own", variables)
    with pytest.raises(pretrained.PretrainedError, match=message):
        pretrained.load(stored(tmp_path / "w.safetensors", **{name: values}), "own", variables)


def add_to(path, tensors):
    save_file(load_file(path) | tensors, path)
    return path


def test_published_inception_gets_the_inputs_that_it_was_trained_on(tmp_path):
    """The first layer with adapted weights on normalised images is that with its own on what torchvision feeds it."""
    layer = ConvNorm(4, (3, 3), 2, padding="VALID", epsilon=inception.EPSILON)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 9, 9, 3))
    variables = layer.init(jax.random.key(0), jnp.ones((1, 9, 9, 3)), train=False)
    own = {name: {"stem1": leaves} for name, leaves in variables.items()}
    mean, deviation = [124.0, 116.0, 104.0], [58.0, 57.0, 60.0]
    adapted = {name: leaves["stem1"] for name, leaves in pretrained.for_inputs(own, mean, deviation).items()}
    expected = layer.apply(variables, (pixels / 255 - 0.5) / 0.5, train=False)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(layer.apply(adapted, (pixels - mean) / deviation, train=False), expected, atol=1e-5)
    path = tmp_path / "w.safetensors"
    save_file({"Conv2d_1a_3x3.conv.weight": np.ones((4, 3, 3, 3), np.float32)}, path)
    assert pretrained.takes_half_ranges(path, "inception_v3")
    assert not pretrained.takes_half_ranges(path, "resnet18")
    pretrained.save(path, own)
    assert not pretrained.takes_half_ranges(path, "inception_v3")
