import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from launch import data
from launch.data import example_checks
from launch.data.example_checks import Labels

INPUTS, LABELS = np.zeros((30, 4, 4, 1), np.float32), np.arange(30, dtype=np.int32) % 10
TEN = Labels((), 10)


def changed(array, place, value):
    array = np.array(array)
    array[place] = value
    return array


def arrays(inputs=INPUTS, labels=LABELS, test_inputs=INPUTS, test_labels=LABELS, **others):
    return data.Arrays(data.Split(inputs, labels), data.Split(test_inputs, test_labels), 10, **others)


@pytest.mark.parametrize("kind", [np.uint8, np.int64, np.uint64, np.int32])
def test_integers_of_any_type_are_labels(kind):
    source = arrays(labels=LABELS.astype(kind), test_labels=LABELS.astype(kind))
    example_checks.check_arrays(source, TEN)
    dataset = source.open(valid_examples=10, seed=0)
    last = list(dataset.eval_batches("test", batch_size=20))[-1]["label"]
    assert last.dtype == np.int32
    np.testing.assert_array_equal(last, [*range(10), *[-1] * 10])  # uint8 has no −1


def test_lists_are_arrays_too():
    example_checks.check_arrays(arrays(labels=LABELS.tolist(), test_labels=jnp.asarray(LABELS)), TEN)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"labels": LABELS[:, None]}, r"train: labels are int32 of shape \[N, 1\]: expected integers of shape \[N\]"),
        ({"labels": np.eye(10)[LABELS]}, r"train: labels are float64 of shape \[N, 10\]: expected integers"),
        ({"labels": np.eye(10, dtype=int)[LABELS]}, r"train: labels are int32 of shape \[N, 10\]"),
        (
            {"labels": LABELS * 1.0},
            r"train: labels are float64 of shape \[N\]: expected integers of .*; a loss",
        ),
        ({"labels": LABELS.astype(str)}, "train: labels are <U11"),
        ({"labels": LABELS + 1}, "train: the label of example 9 is 10: expected 0 … 9$"),
        ({"labels": LABELS * 10}, "train: the label of example 1 is 10: expected 0 … 9$"),
        ({"test_labels": LABELS + 1}, "test: the label of example 9 is 10"),
        ({"labels": changed(LABELS, 7, -1)}, r"train: the label of example 7 is -1: .*padding=True"),
        ({"labels": changed(LABELS.astype(np.uint64), 3, 2**40)}, "label of example 3 is 1099511627776"),
        ({"labels": changed(LABELS, 7, -2), "padding": True}, "the label of example 7 is -2: expected 0 … 9$"),
        ({"labels": LABELS[:29]}, r"train: inputs of shape \(30, 4, 4, 1\), labels of shape \(29,\)"),
        ({"test_labels": np.arange(31) % 10}, r"test: inputs of shape .* expected one label each"),
        ({"test_inputs": INPUTS[:0], "test_labels": LABELS[:0]}, "test: there are no examples"),
        ({"test_inputs": INPUTS[:, :3]}, r"test: inputs are float32 of shape \[N, 3, 4, 1\]: .* \[N, 4, 4, 1\]"),
        ({"test_inputs": INPUTS.astype(np.uint8)}, "test: inputs are uint8 .* expected float32"),
        ({"inputs": changed(INPUTS, (5, 1), np.nan)}, "train: the input of example 5 has a nan: expected finite"),
        ({"test_inputs": changed(INPUTS, (29, 1), -np.inf)}, "test: the input of example 29 has a -inf"),
        (
            {"inputs": changed(INPUTS.astype(float), 2, 1e300), "test_inputs": INPUTS.astype(float)},
            r"train: the input of example 2 has a 1e\+300: expected finite numbers, as float32",
        ),
        (
            {"inputs": changed(INPUTS.astype(int), 2, 2**31), "test_inputs": INPUTS.astype(int)},
            "train: the input of example 2 has a 2147483648: expected -2147483648 … 2147483647",
        ),
        ({"make_batch": lambda x, y, _: {"input": x / np.float32(np.inf) * np.inf, "label": y}}, "example 0 has a nan"),
        ({"make_batch": lambda x, y, _: {"input": x.astype(float), "label": y}}, "inputs are float64"),
        ({"make_batch": lambda x, y, _: {"input": x}}, "train: a batch has only input: expected label as well"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_what_cannot_be_is_told_with_split_and_example(given, message):
    with pytest.raises(data.DataError, match=message):
        example_checks.check_arrays(arrays(**given), TEN)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: data.Split(np.ma.masked_equal(LABELS, 0), LABELS), "inputs are a masked array"),
        (lambda: data.Split(INPUTS, [[1], [2, 3]]), "labels are no array: .*inhomogeneous"),
        (lambda: example_checks.check_type("inputs", object), r"inputs are of type \|O: expected numbers"),
        (lambda: example_checks.check_type("inputs", ">f4"), r"type >f4: .* byte order"),
    ],
)
def test_what_is_no_array_of_numbers_is_refused(make, message):
    with pytest.raises(data.DataError, match=message):
        make()


def test_padding_is_for_data_that_declare_it():
    padded = {"labels": changed(LABELS, 7, -1), "test_labels": changed(LABELS, 0, -1)}
    example_checks.check_arrays(arrays(**padded, padding=True), TEN._replace(padding=True))


def test_a_loss_may_take_labels_of_its_own():
    targets = np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32)
    stated = Labels((3,), None, np.dtype(np.float32))
    example_checks.check_arrays(arrays(labels=targets, test_labels=targets), stated)
    for labels, message in (
        (LABELS, r"train: labels are int32 of shape \[N\]: expected float32 of shape \[N, 3\]$"),
        (changed(targets, (4, 1), np.nan), "train: the label of example 4 has a nan: expected finite"),
        (changed(targets, 8, -1), "train: the label of example 8 is −1; −1 is padding"),
    ):
        with pytest.raises(data.DataError, match=message):
            example_checks.check_arrays(arrays(labels=labels, test_labels=targets), stated)


def test_nothing_can_be_ranked_without_both_labels():
    binary = TEN._replace(classes=2, present=(0, 1))
    late, one = np.asarray([*[0] * 29, 1]), np.zeros(30, int)  # the first batch has one label only
    dataset = arrays(labels=LABELS % 2, test_labels=late).open(valid_examples=20, seed=0)
    example_checks.check_present(dataset, 5, binary)
    example_checks.check_present(arrays(labels=one, test_labels=one).open(valid_examples=20, seed=0), 5, TEN)
    for given, message in (
        ({"labels": LABELS % 2, "test_labels": one}, "test: no label is 1: there is nothing to rank"),
        ({"labels": one + 1, "test_labels": late}, "valid: no label is 0: there is nothing to rank"),
    ):
        with pytest.raises(data.DataError, match=message):
            example_checks.check_present(arrays(**given).open(valid_examples=20, seed=0), 5, binary)


def test_other_floats_than_numpys_are_numbers():
    source = arrays(INPUTS.astype(ml_dtypes.bfloat16), test_inputs=INPUTS.astype(ml_dtypes.bfloat16))
    example_checks.check_type("inputs", source.example.dtype)
    example_checks.check_arrays(source, TEN)
    wrong = changed(INPUTS, 3, np.inf).astype(ml_dtypes.bfloat16)
    with pytest.raises(data.DataError, match="the input of example 3 has a inf"):
        example_checks.check_arrays(arrays(wrong), TEN)


def test_the_first_batch_of_an_evaluation_may_end_with_padding():
    example = jax.ShapeDtypeStruct((4, 4, 1), np.float32)
    batch = {"input": INPUTS[:4], "label": np.asarray([3, 1, -1, -1])}
    example_checks.check_evaluation_batch("test", batch, example, TEN)
    for wrong, message in (
        (None, "test: there is no example with a label"),
        (batch | {"label": np.full(4, -1)}, "test: there is no example with a label"),
        (batch | {"label": np.asarray([3, -1, 1, -1])}, "the label of example 1 is -1"),
        (batch | {"input": INPUTS[:4, 1:]}, r"inputs are float32 of shape \[N, 3, 4, 1\]"),
        (batch | {"label": np.asarray([3, 1])}, "test: 4 inputs and 2 labels"),
    ):
        with pytest.raises(data.DataError, match=message):
            example_checks.check_evaluation_batch("test", wrong, example, TEN)


def test_data_that_repeat_one_entry_are_checked_at_once():
    """A broadcast array of 400 GB."""
    inputs = np.broadcast_to(np.float32(np.inf), (10**6, 300, 300, 1))
    with pytest.raises(data.DataError, match="example 0 has a inf"):
        example_checks.check_batch(
            "train",
            {"input": inputs, "label": np.zeros(10**6, int)},
            jax.ShapeDtypeStruct((300, 300, 1), np.float32),
            TEN,
        )


def in_place(inputs, labels, rng):
    inputs /= 255
    return {"input": inputs, "label": labels}


def missing_one(inputs, labels, rng):
    return {"input": inputs[1:], "label": labels[1:]}


def drawn(inputs, labels, rng):
    return {"input": inputs + np.random.default_rng().standard_normal(inputs.shape, np.float32), "label": labels}


@pytest.mark.parametrize(
    ("make_batch", "message"),
    [
        (in_place, "fails: ValueError: output array is read-only"),
        (missing_one, "make_batch gives 29 of 30 examples: expected all"),
        (drawn, "make_batch without rng gives another batch each time"),
        (lambda inputs, labels, rng: None, "make_batch gives a NoneType: expected a dict"),
        (lambda inputs, labels: None, "fails: TypeError"),
        (lambda inputs, labels, rng: {"input": inputs}["label"], "fails: KeyError: 'label'"),
    ],
)
def test_functions_that_make_no_good_batches_are_refused(make_batch, message):
    mine = np.ones((30, 4, 4, 1), np.float32)
    with pytest.raises(data.DataError, match=message):
        example_checks.check_arrays(arrays(inputs=mine, make_batch=make_batch), TEN)
    assert (mine == 1).all()
    mine[0] = 2  # the user's own array stays theirs


NAMED = {"ids": np.arange(60, dtype=np.int32).reshape(30, 2), "x": np.ones((30, 3), np.float32)}


def test_several_inputs_are_batched_and_padded_together():
    for inputs in (NAMED, tuple(NAMED.values()), NAMED | {"ids": NAMED["ids"].tolist()}):
        source = arrays(inputs=inputs, test_inputs=inputs)
        example_checks.check_arrays(source, TEN)
        dataset = source.open(valid_examples=10, seed=0)
        batch = next(dataset.train_batches("train", batch_size=4, first_step=0, augmented=True))
        ids, x = jax.tree.leaves(batch["input"])
        assert (type(batch["input"]), x.shape) == (type(inputs), (4, 3))
        np.testing.assert_array_equal(ids[:, 0] // 2 % 10, batch["label"])
        last = list(dataset.eval_batches("test", batch_size=20))[-1]
        assert [leaf.shape for leaf in jax.tree.leaves(last["input"])] == [(20, 2), (20, 3)]
        assert last["label"][-1] == -1
        example_checks.check_evaluation_batch("test", last, source.example, TEN._replace(padding=True))
    assert arrays(inputs=NAMED).content != arrays(inputs={"ids": NAMED["ids"], "y": NAMED["x"]}).content


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"inputs": {**NAMED, "x": NAMED["x"][:29]}}, r"train: inputs x of shape \(29, 3\), labels of shape \(30,\)"),
        ({"inputs": {**NAMED, "x": changed(NAMED["x"], (5, 0), np.nan)}}, "train: the input x of example 5 has a nan"),
        ({"test_inputs": {"ids": NAMED["ids"]}}, "test: a batch has input ids: expected input ids, input x, as those"),
        ({"test_inputs": {**NAMED, "x": NAMED["ids"]}}, r"test: inputs x are int32 of shape \[N, 2\]: .* \[N, 3\]"),
        ({"inputs": tuple(NAMED.values())}, r"test: a batch has input ids, input x: expected input 0, input 1"),
    ],
)
def test_what_is_wrong_with_one_of_several_inputs_is_named(given, message):
    with pytest.raises(data.DataError, match=message):
        example_checks.check_arrays(arrays(**({"inputs": NAMED, "test_inputs": NAMED} | given)), TEN)
