"""What holds for every family: the largest network under a genome is the network that is cut out."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from apq_jax import architectures
from apq_jax.architecture_space import Stage
from aqt_like.formats import parse_format
from fliqs_jax.models import elastic, mobilenet, recommender
from fliqs_jax.models.mobilenet import MobileNetV2
from fliqs_jax.models.pinning import pinned
from fliqs_jax.models.recommender import Recommender
from hwcost import workload
from hwcost.costs import COSTS

TINY = MobileNetV2(classes=3, small_images=True, stages=((1, 4, 1, 1), (2, 8, 2, 2)), stem=4, head=8, multiple=2)
WHOLE = mobilenet.family(TINY, (0.5, 1.0, 1.5), (3, 5, 7))
FAMILIES = {
    "mobilenetv2": (WHOLE, (8, 8, 3)),
    "under rules": (
        pinned(
            WHOLE,
            {
                "stage1_block1.width": (0,),
                "stage2_block1.kernel": (1,),
                "stage2_block2.width": (0,),
                "stage2_block2.kernel": (0, 2),
            },
        ),
        (8, 8, 3),
    ),
    "recommender": (
        recommender.family(Recommender(classes=1, width=1 / 64, rank=4, buckets=5, embedding=1), (0.5, 1, 2), (0.5, 1)),
        (39,),
    ),
    "once for all": (
        dataclasses.replace(architectures.find("digits"), stages=(Stage(8, 1, 1, 2),), channel_step=16).family,
        (8, 8, 1),
    ),
}


@pytest.fixture(scope="module", params=FAMILIES)
def case(request):
    family, shape = FAMILIES[request.param]
    x = jax.random.uniform(jax.random.key(3), (4, *shape))
    start = jax.jit(lambda: elastic.init(family, jax.random.key(0), x, train=False))()
    rng = np.random.default_rng(0)
    moved = jax.tree.map(lambda leaf: jnp.asarray(leaf + rng.uniform(0, 0.1, leaf.shape), jnp.float32), start)
    return family, x, *moved


def random_genomes(family, count):
    return np.random.default_rng(0).integers(0, family.space.option_counts, (count, len(family.space)), np.int32)


def test_networks_cut_out_compute_what_the_specialised_one_does(case):
    family, x, weights, stats = case

    @jax.jit
    def under(weights, genome):
        params = elastic.specialised(family, weights, elastic.options_of(family.space, genome))
        return family.largest.apply({"params": params, "batch_stats": stats}, x, train=False)

    for genome in (family.base, *random_genomes(family, 3)):
        module, variables = elastic.cut_out(family, weights, stats, genome)
        fresh = jax.eval_shape(lambda module=module: module.init(jax.random.key(0), x, train=False))
        assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, fresh)
        np.testing.assert_allclose(module.apply(variables, x, train=False), under(weights, genome), atol=2e-5)
    assert under._cache_size() == 1


def test_narrow_layers_without_normalisation_start_as_they_would_alone():
    base = Recommender(classes=1, width=1 / 4, rank=64, buckets=2, embedding=1)
    family = recommender.family(base, (0.25, 1.0), (0.25, 1.0))
    weights, stats = elastic.init(family, jax.random.key(0), jnp.ones((1, 39)), train=False)
    _, narrow = elastic.cut_out(family, weights, stats, np.zeros(len(family.space), np.int32))
    for layer in family.layers:
        kernel = narrow["params"][layer.path]["kernel"]
        assert np.std(kernel) == pytest.approx(len(kernel) ** -0.5, rel=0.25), layer.path


def test_layers_name_the_normalisation_that_follows_them(case):
    family, _, weights, _ = case
    names = flatten_dict(weights.params, sep="/")
    for layer in family.layers:
        beside = layer.path.removesuffix("conv") + "norm"
        assert layer.norm == (beside if any(name.startswith(beside) for name in names) else "")


def test_variants_are_the_layers_of_networks_cut_out(case):
    family, x, *_ = case
    layers = workload.trace(family.largest, x.shape[1:], train=False)
    for genome in (family.base, *random_genomes(family, 5)):
        options = elastic.options_of(family.space, genome)
        ours = []
        for layer in layers:
            found = elastic.variants(family, layer)
            ours.append(found.specs[found.index[*(options[name] for name in found.decisions)]] if found else layer)
        theirs = workload.trace(family.network(genome), x.shape[1:], train=False)
        assert tuple(layer for layer in ours if layer) == theirs
        int4 = parse_format("int4")
        for model in (COSTS["bit_operations"], COSTS["bitfusion_latency"], COSTS["peak_activation_bytes"]):
            costs = [float(model.layer_costs(layer, [int4])[0]) for layer in ours if layer]
            assert model.over_layers(costs) == pytest.approx(model.uniform(theirs, int4))


def test_weights_that_are_not_there_have_no_gradient(case):
    family, x, weights, stats = case
    smallest = np.zeros(len(family.space), np.int32)
    options = elastic.options_of(family.space, smallest)
    _, there = elastic.cut_out(family, weights, stats, smallest)
    kept = {name: leaf.shape for name, leaf in flatten_dict(there["params"], sep="/").items()}

    def loss(weights):
        params = elastic.specialised(family, weights, options)
        return jnp.sum(family.largest.apply({"params": params, "batch_stats": stats}, x, train=False) ** 2)

    elastic_names = {f"{layer.path}/kernel" for layer in family.layers if not layer.kernel}
    gradients = flatten_dict(jax.jit(jax.grad(loss))(weights).params, sep="/")
    assert elastic_names
    for name in elastic_names:
        inside = np.zeros(gradients[name].shape, bool)
        inside[tuple(slice(size) for size in kept.get(name, (0,) * inside.ndim))] = True
        assert not np.asarray(gradients[name])[~inside].any()


def test_the_base_is_the_plain_network():
    x = jax.random.uniform(jax.random.key(3), (2, 8, 8, 3))
    family, _ = FAMILIES["mobilenetv2"]
    weights, stats = jax.jit(lambda: elastic.init(family, jax.random.key(0), x, train=False))()
    module, variables = elastic.cut_out(family, weights, stats, family.base)
    np.testing.assert_array_equal(module.apply(variables, x, train=False), TINY.apply(variables, x, train=False))
    plain = mobilenet.family(TINY)
    assert (len(plain.space), plain.layers[0].outputs.decisions) == (0, ())


def test_all_kernels_run_together_as_their_mean():
    family, _ = FAMILIES["mobilenetv2"]
    x = jax.random.uniform(jax.random.key(3), (2, 8, 8, 3))
    weights, _ = jax.jit(lambda: elastic.init(family, jax.random.key(0), x, train=False))()
    options = elastic.options_of(family.space, family.base)
    joint = {name: name == "stage2_block1.kernel" for name in options}

    def logits(options, joint=None):
        params = elastic.specialised(family, weights, options, joint)
        return params["stage2_block1"]["depthwise"]["conv"]["kernel"], params["stage2_block2"]

    kernels = [logits({**options, "stage2_block1.kernel": size})[0] for size in range(3)]
    together, other = logits(options, joint)
    np.testing.assert_allclose(together, sum(kernels) / 3, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, other, logits(options)[1])


@pytest.mark.parametrize(
    ("network", "sizes", "message"),
    [
        (TINY, {"widths": (0.5, 1.5)}, r"widths=\(0.5, 1.5\): expected ascending numbers with 1 among them"),
        (TINY, {"kernels": (5, 3)}, r"kernels=\(5, 3\): expected ascending numbers with 3 among them"),
        (TINY, {"kernels": (3, 4)}, r"kernels=\(3, 4\): 4: expected odd whole numbers, up to 31"),
        (TINY, {"kernels": (3.0, 5.0)}, "3.0: expected odd whole numbers"),
        (TINY, {"widths": (1.0, 1e30)}, r"widths=\(1.0, 1e\+30\) gives stage1_block1 4 to 4\d+ channels"),
        (TINY.clone(kernels=(3, 3, 5)), {}, r"kernels=\(3, 3, 5\): a family is made from a network without"),
    ],
)
def test_what_is_no_family_is_refused(network, sizes, message):
    with pytest.raises(ValueError, match=message):
        mobilenet.family(network, **sizes)


def test_no_layer_is_without_channels():
    with pytest.raises(ValueError, match=r"ranks=\(0.001, 1.0\) gives hidden1 0 to 128 channels"):
        recommender.family(Recommender(classes=1), ranks=(0.001, 1.0))
