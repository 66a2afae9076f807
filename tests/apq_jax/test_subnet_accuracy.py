import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from apq_jax import architectures, subnet_accuracy, supernet
from apq_jax.architecture_space import Stage

SPACE = dataclasses.replace(architectures.find("digits"), stages=(Stage(8, 1, 1, 2),))  # two blocks
FULL = SPACE.family.largest


def batches(count, seed, size=16):
    rng = np.random.default_rng(seed)
    return [
        {"input": rng.normal(size=(size, 8, 8, 1)).astype(np.float32), "label": rng.integers(0, 10, size)}
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def weights_and_stats():
    return supernet.init(SPACE, jax.random.key(0))


def test_float_accuracy_is_that_of_the_network_cut_out_and_recalibrated(weights_and_stats):
    weights, stats = weights_and_stats
    validation = batches(3, seed=1)
    validation[-1]["label"][10:] = -1
    data = subnet_accuracy.Data(calibration=batches(3, seed=2), training=[], validation=validation)
    genome = np.asarray(SPACE.sample(jax.random.key(3)))
    found = subnet_accuracy.make_float_accuracy(SPACE)(weights, stats, data, jnp.asarray(genome))

    smaller, variables = supernet.cut_out(SPACE, weights, stats, genome)
    # One update from zero is a tenth of what a batch has.
    empty = variables | {"batch_stats": jax.tree.map(jnp.zeros_like, variables["batch_stats"])}
    train = jax.jit(lambda x: smaller.apply(empty, x, train=True, mutable=["batch_stats"])[1]["batch_stats"])
    tenths = [train(batch["input"]) for batch in data.calibration]
    settled = variables | {"batch_stats": jax.tree.map(lambda *leaves: 10 * np.mean(leaves, axis=0), *tenths)}
    predict = jax.jit(lambda x: smaller.apply(settled, x, train=False).argmax(-1))
    right = sum(int((predict(b["input"]) == b["label"]).sum()) for b in validation)
    assert found == pytest.approx(right / 42)


def test_genomes_say_the_formats_of_layers():
    assert [member.name for member in SPACE.formats[:3]] == ["int2", "int2/int4", "int2/int8"]
    genome = np.array(SPACE.largest)
    space = SPACE.search_space
    genome[space.index("stage1_block2.pointwise_weights")] = space.decisions[
        space.index("stage1_block2.pointwise_weights")
    ].options.index("int2")
    genome[space.index("stage1_block2.depthwise_inputs")] = 1
    choice = jax.jit(SPACE.format_choice)(genome)
    names = {layer.path: SPACE.formats[i].name for layer, i in zip(SPACE.layers, choice, strict=True)}
    assert names.pop("stage1_block2/expand/conv") == "int2/int8"
    assert names.pop("stage1_block2/project/conv") == "int2/int8"
    assert names.pop("stage1_block2/depthwise/conv") == "int8/int4"
    assert set(names.values()) == {"int8"}


def test_quantised_accuracy_fine_tunes_and_leaves_the_once_for_all_network_alone(weights_and_stats):
    weights, stats = weights_and_stats
    examples = batches(1, seed=4)
    data = subnet_accuracy.Data(calibration=examples, training=examples * 16, validation=examples)
    measure = subnet_accuracy.make_quantized_accuracy(
        SPACE,
        clipping=subnet_accuracy.QUANTIZERS["gaussian"],
        optimizer=optax.sgd(0.05, momentum=0.9),
        loss=lambda logits, b: optax.softmax_cross_entropy_with_integer_labels(logits, b["label"]).mean(),
    )
    before = jax.tree.map(np.array, weights)
    genome = jnp.asarray(SPACE.largest)
    tuned = measure(weights, stats, data, genome)
    untuned = measure(weights, stats, data._replace(training=[]), genome)
    coarse = measure(weights, stats, data, jnp.asarray(SPACE.smallest))
    assert tuned > untuned + 0.2
    assert tuned > coarse  # two bits and fewer channels
    assert tuned == measure(weights, stats, data, genome)
    jax.tree.map(np.testing.assert_array_equal, weights, before)
    # A network whose fine-tuning diverged is bad, and no error.
    diverged = [examples[0] | {"input": np.full((16, 8, 8, 1), np.nan, np.float32)}]
    assert measure(weights, stats, data._replace(training=diverged), genome) < tuned
