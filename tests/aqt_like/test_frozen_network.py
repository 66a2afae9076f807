"""Frozen networks: one set of codes in all forms, and a file that is read back bit for bit or refused."""

import concurrent.futures
import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import aqt_like
from aqt_like import interception, packing, tensor_file
from aqt_like.frozen_network import Factor, FreezeError, FrozenNetwork, Kernel
from aqt_like.interception import Product, Quantizer

FORMATS = {
    "conv": "int4",
    "deep": "int5/int8",
    "wide": "e6m1",
    "^head": "bf16",
    "blocks": "int3 per_block_4",
    ".*": "int3",
}


class Network(nn.Module):
    """Layers of all ways to store: odd and even widths, blocks, wide exponents, a product, a kernel read twice."""

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.relu(nn.Conv(6, (3, 3), use_bias=False, name="conv")(x))
        x = nn.BatchNorm(use_running_average=not train, name="norm")(x)
        x = jnp.mean(x, (1, 2))
        x = nn.relu(nn.Dense(9, name="deep")(x))
        x = nn.tanh(nn.Dense(9, name="wide")(x))
        x = nn.tanh(nn.Dense(5, name="blocks")(x))
        scores = Product(name="scores")("bc,dc->bd", x, x)
        tied = nn.Dense(5, use_bias=False, name="tied")
        y = tied(x) @ tied.variables["params"]["kernel"].T
        return nn.Dense(4, name="head")(y + jnp.sum(scores, axis=1, keepdims=True))


MODEL = Network()


@pytest.fixture(scope="module")
def images():
    return jax.random.normal(jax.random.key(0), (8, 6, 6, 3))


@pytest.fixture(scope="module")
def trained(images):
    """Weights on a grid, as straight-through training leaves them: many lie on rounding thresholds."""
    variables = jax.jit(lambda x: MODEL.init(jax.random.key(1), x, train=False))(images)
    variables["params"] = jax.tree.map(lambda leaf: jnp.round(leaf * 16) / 16, variables["params"])
    return variables


@pytest.fixture(scope="module")
def quantized(trained, images):
    return aqt_like.quantize_model(MODEL, trained, images, FORMATS, train=False)


@pytest.fixture(scope="module")
def frozen(quantized, trained, images):
    return dataclasses.replace(aqt_like.freeze(quantized, trained, images, train=False), about={"name": "a test"})


@pytest.fixture
def file(frozen, tmp_path):
    frozen.save(tmp_path / "network.safetensors")
    return tmp_path / "network.safetensors"


def assert_same(a, b):
    """Equal trees, bit for bit."""
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)
    assert jax.tree.structure(a) == jax.tree.structure(b)


def test_codes_are_those_of_numpy(frozen, trained):
    kernel = np.asarray(trained["params"]["conv"]["kernel"], np.float64)
    packed = frozen.layers["conv"].weights.packed
    scale = packed.scale.astype(np.float64)
    values = packing.unpack_values(packed)
    assert values.shape == kernel.shape
    assert np.abs(values).max() <= 7
    inside = np.abs(kernel) <= 7 * scale
    # A weight on a threshold may go to either side.
    assert (np.abs(values - kernel / scale)[inside] <= 0.5 + 1e-5).all()
    np.testing.assert_array_equal(values[~inside], 7 * np.sign(kernel[~inside]))
    deep = np.asarray(trained["params"]["deep"]["kernel"])
    assert frozen.layers["deep"].weights.packed.codes.size == -(-deep.size * 5 // 8)


def test_it_computes_what_the_quantised_model_does(frozen, quantized, trained, images):
    network, variables = frozen.bind(MODEL)
    expected = jax.jit(lambda x: quantized.apply(trained, x, train=False))(images)
    found = jax.jit(lambda x: network.apply(variables, x, train=False))(images)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert network.formats == quantized.formats
    assert type(network) is type(quantized)


def test_all_forms_have_one_set_of_codes(frozen, images, file):
    """Eager, jitted, with everything a constant, and exported."""
    network, variables = aqt_like.load_network(file, MODEL)

    def apply(collection, variables, x):
        return interception.apply_quantized(MODEL, {**variables, "formats": collection}, x, train=False)

    arguments = network.collection, variables, images
    exported = export.deserialize(export.export(jax.jit(apply))(*arguments).serialize())
    forms = {
        "eager": network.apply(variables, images, train=False),
        "jitted": jax.jit(apply)(*arguments),
        "constants": jax.jit(lambda x: network.apply(variables, x, train=False))(images),
        "exported": exported.call(*arguments),
    }
    for name, logits in forms.items():
        np.testing.assert_allclose(logits, forms["eager"], atol=1e-5, err_msg=name)
    np.testing.assert_array_equal(forms["jitted"], forms["exported"])
    # No form makes codes of weights: the kernels that they stand for are not there.
    assert np.isnan(variables["params"]["conv"]["kernel"]).all()


def test_activations_are_stored_as_they_were(frozen, quantized, trained, images, tmp_path):
    stored = dataclasses.replace(quantized, quantizer=quantized.quantizer._replace(activations=jnp.bfloat16))
    file = tmp_path / "network.safetensors"
    dataclasses.replace(frozen, activations="bfloat16").save(file)
    network, variables = aqt_like.load_network(file, MODEL)
    expected = jax.jit(lambda x: stored.apply(trained, x, train=False))(images)
    found = jax.jit(lambda x: network.apply(variables, x, train=False))(images)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert network.quantizer.activations == jnp.bfloat16
    assert frozen.bind(MODEL, stored.quantizer)[0].quantizer.activations == jnp.float32  # It says how it computes.
    # Files of earlier versions do not say it; one of another type is refused.
    arrays, manifest = tensor_file.load(file)
    del manifest["activations"]
    tensor_file.save(file, arrays, manifest)
    assert FrozenNetwork.load(file).activations == "float32"
    tensor_file.save(file, arrays, {**manifest, "activations": "int4"})
    with pytest.raises(tensor_file.DamagedFileError, match="activations 'int4': expected one of float32, bfloat16"):
        FrozenNetwork.load(file)


def test_the_file_is_read_back_bit_for_bit(frozen, file):
    loaded = FrozenNetwork.load(file)
    assert loaded.layers.keys() == frozen.layers.keys()
    for path, layer in frozen.layers.items():
        assert loaded.layers[path]._replace(weights=None) == layer._replace(weights=None)
    assert_same(loaded.variables, frozen.variables)
    assert (loaded.omitted, loaded.about) == (frozen.omitted, frozen.about)
    assert_same(loaded.bind(MODEL)[0].collection, frozen.bind(MODEL)[0].collection)
    loaded.save(file.with_name("again"))
    assert file.with_name("again").read_bytes() == file.read_bytes()
    sizes = loaded.sizes()
    assert sum(sizes.values()) < file.stat().st_size
    assert loaded.float32_bytes() == 4 * sum(leaf.size for leaf in jax.tree.leaves(frozen.bind(MODEL)[1]))


def test_what_else_reads_a_kernel_gets_its_float_weights(frozen, trained):
    assert "params/tied/kernel" not in frozen.omitted
    np.testing.assert_array_equal(frozen.variables["params"]["tied"]["kernel"], trained["params"]["tied"]["kernel"])
    assert set(frozen.omitted) == {f"params/{name}/kernel" for name in ("conv", "deep", "wide", "blocks", "head")}


def test_inputs_and_factors_are_described(frozen):
    layers = frozen.layers
    assert layers["deep"].format == "int5/int8"
    assert layers["wide"].input_format == "e6m1"
    assert layers["wide"].weights.packed.exponent == layers["wide"].input_exponent < 0
    assert layers["blocks"].weights.packed.scale.shape == (3, 5)
    assert isinstance(layers["scores"].weights, Factor)
    assert isinstance(layers["head"].weights, Kernel)
    assert (layers["head"].input_scale, layers["head"].weights.packed.codes.nbytes) == (1.0, 5 * 4 * 2)


def test_signs_of_inputs_are_kept(trained, images):
    network = aqt_like.quantize_model(MODEL, trained, images, "int4", train=False)
    layers = aqt_like.freeze(network, trained, images, train=False).layers
    profiles = interception.profile_inputs(MODEL, trained, images, train=False)
    expected = {path: "uint4" if profile.smallest >= 0 else "int4" for path, profile in profiles.items()}
    assert {path: layer.input_format for path, layer in layers.items()} == expected
    assert (expected["conv"], expected["wide"]) == ("int4", "uint4")


def test_mutations_of_the_file_are_noticed(frozen, tmp_path):
    """2,000: bytes changed, cut out, inserted, and the end cut off. None is loaded as something else."""
    few = {path: frozen.layers[path] for path in ("scores", "blocks")}
    file, mutated = tmp_path / "network", tmp_path / "mutated"
    FrozenNetwork(few, {"params": {"bias": np.ones(3)}}, frozen.omitted).save(file)
    original, expected, rng, noticed = file.read_bytes(), FrozenNetwork.load(file), np.random.default_rng(0), 0
    for i in range(2_000):
        at, other = rng.integers(len(original)), rng.integers(1, 256)
        match i % 4:
            case 0 | 1:
                contents = bytearray(original)
                contents[at] ^= other
            case 2:
                contents = original[:at] + original[at + 1 :] if i % 8 == 2 else original[:at]
            case _:
                contents = original[:at] + bytes([other]) + original[at:]
        mutated.write_bytes(contents)
        try:
            loaded = FrozenNetwork.load(mutated)
        except packing.DamagedFileError:
            noticed += 1
        else:  # Padding of the header may change, and spaces in it.
            assert_same(dataclasses.asdict(loaded), dataclasses.asdict(expected))
    assert noticed > 1_980


def test_other_files_are_refused(file, tmp_path):
    packing.save(tmp_path / "packed", {"x": packing.pack(np.ones(3), "int8")})
    with pytest.raises(
        packing.DamagedFileError, match="is a file of packed tensors of version 3: expected a frozen net"
    ):
        FrozenNetwork.load(tmp_path / "packed")
    with pytest.raises(FileNotFoundError):
        FrozenNetwork.load(tmp_path / "nothing")
    with pytest.raises(ValueError, match="no layer that can be quantised ran at conv"):
        other = nn.Sequential([nn.Dense(4)])
        network, variables = aqt_like.load_network(file, other)
        network.apply(
            variables | {"params": other.init(jax.random.key(0), jnp.ones((1, 3)))["params"]}, jnp.ones((1, 3))
        )


def test_what_cannot_be_frozen_is_refused(quantized, trained, images):
    def with_quantizer(**settings):
        return dataclasses.replace(quantized, quantizer=Quantizer(**settings))

    with pytest.raises(FreezeError, match="input_clip or factor_clip"):
        aqt_like.freeze(with_quantizer(input_clip=lambda x, row: row.largest), trained, images, train=False)
    with pytest.raises(FreezeError, match="no codes"):
        aqt_like.freeze(with_quantizer(estimator=lambda x, row, clip: x), trained, images, train=False)
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, trained["params"])
    with pytest.raises(FreezeError, match=r"conv: .* values are not of int4"):
        aqt_like.freeze(quantized, trained | {"params": broken}, images, train=False)


def one_layer(call):
    """A model of one function of a module and its input."""

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x, **settings):
            return call(self, x, **settings)

    return Model()


ROWS = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)


def quantized_and_frozen(model, **settings):
    variables = model.init(jax.random.key(1), ROWS)
    network = aqt_like.quantize_model(model, variables, ROWS, "int4")
    return network, variables, aqt_like.freeze(network, variables, ROWS, **settings)


def centred(inputs, kernel, bias, *, dtype=None):
    inputs, kernel, bias = nn.dtypes.promote_dtype(inputs, kernel, bias, dtype=dtype)
    return inputs, kernel - jnp.mean(kernel, 0), bias


@pytest.mark.parametrize(
    "model",
    [
        one_layer(lambda _, x: nn.Dense(3, promote_dtype=centred, name="d")(x)),
        one_layer(lambda _, x: nn.WeightNorm(nn.Dense(3, name="d"), name="a/b")(x)),
    ],
    ids=["a promote_dtype of its own", "names with slashes"],
)
def test_kernels_are_frozen_as_they_are_multiplied(model, tmp_path):
    network, variables, frozen = quantized_and_frozen(model)
    frozen.save(tmp_path / "x")
    loaded, others = aqt_like.load_network(tmp_path / "x", model)
    np.testing.assert_allclose(loaded.apply(others, ROWS), network.apply(variables, ROWS), atol=1e-6)
    assert jax.tree.structure(others) == jax.tree.structure(variables)


def masked_by_input(_, x):
    return nn.Conv(4, (3,), mask=(x.mean() > 0) * jnp.ones((3, 6, 4)), name="d")(x[None])


class TwoKernels(nn.Module):
    def setup(self):
        self.d = nn.Dense(6, use_bias=False)

    def __call__(self, x):
        y = self.d(x)
        if self.is_initializing():
            return y
        cubed = nn.map_variables(
            lambda module, x: module.d(x), "params", lambda v: jax.tree.map(lambda leaf: leaf**3, v), mutable=False
        )
        return y + cubed(self, x)


def with_state(value):
    def call(module, x):
        module.variable("state", "t", lambda: value)
        return nn.Dense(3, name="d")(x)

    return one_layer(call)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (one_layer(masked_by_input), "d: its kernel depends on the input of the model"),
        (TwoKernels(), "d: the calls of the layer multiply different kernels"),
        (with_state((1, 2)), "state/t is a tuple: expected variables that are arrays"),
        (with_state(jax.random.key(0)), "state/t is of type key<fry>, which no file can hold"),
    ],
)
def test_what_no_file_can_stand_for_is_refused(model, message):
    with pytest.raises(FreezeError, match=message):
        quantized_and_frozen(model)


def test_what_is_frozen_stays_so():
    _, _, frozen = quantized_and_frozen(one_layer(lambda _, x: nn.Dense(3, name="d")(x)))
    network, variables = frozen.bind(one_layer(lambda _, x: nn.Dense(3, name="d")(x)))
    with pytest.raises(FreezeError, match="frozen already"):
        aqt_like.freeze(network, variables, ROWS)
    with pytest.raises(TypeError, match="expected a linen module"):
        aqt_like.quantize_model(network, variables, ROWS)


def test_kernels_that_other_modes_read_are_kept():
    def call(module, x, *, penalty=False):
        layer = nn.Dense(3, name="d")
        y = layer(x)
        return (y, jnp.sum(layer.variables["params"]["kernel"] ** 2)) if penalty else y

    model = one_layer(call)
    _, variables, frozen = quantized_and_frozen(model, other_modes=({"penalty": True},))
    network, others = frozen.bind(model)
    assert network.apply(others, ROWS, penalty=True)[1] == jnp.sum(variables["params"]["d"]["kernel"] ** 2)
    assert set(quantized_and_frozen(model)[2].omitted) == {"params/d/kernel"}


def test_arguments_need_not_be_arrays():
    model = one_layer(lambda _, x, **kwargs: nn.Dense(3, name="d")(x))
    variables = model.init(jax.random.key(1), ROWS)
    frozen = aqt_like.freeze(aqt_like.quantize_model(model, variables, ROWS), variables, ROWS, mode="a text", flag=True)
    with pytest.raises(FreezeError, match="b does not run under these arguments"):
        twice = one_layer(lambda _, x, b=True: nn.Dense(3, name="a")(nn.Dense(6, name="b")(x) if b else x))
        variables = twice.init(jax.random.key(1), ROWS)
        aqt_like.freeze(aqt_like.quantize_model(twice, variables, ROWS), variables, ROWS, b=False)
    assert frozen.layers.keys() == {"d"}


def test_codes_are_those_of_one_layout_of_a_kernel(tmp_path):
    """Two models whose kernels have one shape, and other axes of outputs."""
    one, other = (one_layer(lambda _, x, e=e: nn.Einsum((6, 6), e, name="d")(x)) for e in ("bd,df->bf", "bd,fd->bf"))
    quantized_and_frozen(one)[2].save(tmp_path / "x")
    network, variables = aqt_like.load_network(tmp_path / "x", other)
    with pytest.raises(ValueError, match=r"d: codes of a kernel of .* for one of .*: the network is that of another"):
        network.apply(variables, ROWS)


def test_empty_collections_are_kept(tmp_path):
    frozen = quantized_and_frozen(one_layer(lambda _, x: nn.Dense(3, name="d")(x)))[2]
    frozen = dataclasses.replace(frozen, variables=frozen.variables | {"batch_stats": {}})
    frozen.save(str(tmp_path / "x"))
    assert FrozenNetwork.load(str(tmp_path / "x")).variables["batch_stats"] == {}


def test_any_type_of_number_is_stored(tmp_path):
    tensors = {
        dtype: np.arange(3).astype(jnp.dtype(dtype))
        for dtype in ("float32", "float16", "bfloat16", "float8_e4m3fn", "int4", "uint8", "bool", "complex64")
    } | {"scalar": np.float32(2.5)}
    tensor_file.save(tmp_path / "x", tensors, {"kind": "test", "version": 1})
    loaded, manifest = tensor_file.load(tmp_path / "x", kind="test", version=1)
    assert manifest == {"kind": "test", "version": 1}
    for name, values in tensors.items():
        assert (loaded[name].dtype, loaded[name].shape) == (np.asarray(values).dtype, np.shape(values))
        np.testing.assert_array_equal(loaded[name], values)
    with pytest.raises(ValueError, match="cannot hold these tensors"):
        tensor_file.save(tmp_path / "x", {"a": np.asarray(["text"])}, {})
    swapped = np.arange(3, dtype=">f4")
    tensor_file.save(tmp_path / "x", {"a": swapped}, {"kind": "test", "version": 1, "keys": {1: (2,)}})
    loaded, manifest = tensor_file.load(tmp_path / "x", kind="test", version=1)
    np.testing.assert_array_equal(loaded["a"], swapped)
    assert manifest["keys"] == {"1": [2]}
    tensor_file.save(tmp_path / "x", {}, {"kind": "frozen network", "version": 1})
    with pytest.raises(packing.DamagedFileError, match="lacks a part of a frozen network"):
        FrozenNetwork.load(tmp_path / "x")
    with pytest.raises(packing.DamagedFileError, match="is a directory"):
        FrozenNetwork.load(tmp_path)


def test_writers_at_once_leave_a_whole_file(tmp_path):
    tensors = {"x": np.zeros(100_000)}

    def write(_):
        tensor_file.save(tmp_path / "x", tensors, {"kind": "test", "version": 1})

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(40)))
    assert tensor_file.load(tmp_path / "x", kind="test", version=1)[0].keys() == {"x"}
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
