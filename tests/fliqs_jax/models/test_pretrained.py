"""Networks with weights in PyTorch's naming give what torchvision's and timm's own networks give.

`golden/make_torch_outputs.py` ran those once, with weights that are a function of their names, and stored the logits.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from golden import make_torch_outputs
from safetensors.numpy import save_file

from fliqs_jax import models
from fliqs_jax.models import pretrained

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
