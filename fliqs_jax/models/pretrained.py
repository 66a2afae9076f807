"""Pretrained weights: safetensors files with Flax names or PyTorch names, Flax's msgpack, orbax checkpoints.

PyTorch names are those of torchvision for ResNet, MobileNetV2, EfficientNet and Inception-v3, and those of timm for
DeiT. Regular expressions map our module paths to them; PyTorch stores convolution kernels as OIHW and dense kernels as
OI.
"""

import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import safetensors
from flax import serialization, traverse_util
from jax.typing import ArrayLike

from aqt_like import tensor_file

Rules = list[tuple[str, str | Callable[[re.Match[str]], str]]]

KIND, VERSION = "file of weights", 1  # of what `save` writes
COLLECTIONS = ("params", "batch_stats")
_FLAX = tuple(f"{name}/" for name in COLLECTIONS)  # begin names of Flax

_CLASSIFIER = "classifier"
_BOXED = "value"  # what msgpack and orbax make of a box: a dict of this one name
_ORBAX_ITEM = "default"  # the part of a checkpoint of a manager of orbax
# What belongs to a network although no variable is for it: counters, Inception's auxiliary classifier, and what the
# weights of a run hold for other formats.
_MAY_BE_LEFT = re.compile(r"(^|\.)num_batches_tracked$|^AuxLogits\.|^(calibration|clip_multiples|collections)/")
_FIRST, _HALF_RANGE = "stem1", 127.5
_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
_INCEPTION_STEM = {"1": "1a_3x3", "2": "2a_3x3", "3": "2b_3x3", "4": "3b_1x1", "5": "4a_3x3"}
_INCEPTION_BLOCKS = {
    **{f"a{i + 1}": f"5{letter}" for i, letter in enumerate("bcd")},
    "b": "6a",
    **{f"c{i + 1}": f"6{letter}" for i, letter in enumerate("bcde")},
    "d": "7a",
    **{f"e{i + 1}": f"7{letter}" for i, letter in enumerate("bc")},
}
_INCEPTION_BRANCHES: Rules = [
    (r"\bone\b", "branch1x1"),
    (r"\bpool\b", "branch_pool"),
    (r"\bfive(\d)", r"branch5x5_\1"),
    (r"\b(6a)/three\b", r"\1/branch3x3"),
    (r"\bthree(\d\w?)", r"branch3x3_\1"),
    (r"\bdouble(\d\w?)", r"branch3x3dbl_\1"),
    (r"\b(7a)/seven(\d)", r"\1/branch7x7x3_\2"),
    (r"\bseven(\d)", r"branch7x7_\1"),
    (r"\b(6[b-e])/branch3x3dbl_", r"\1/branch7x7dbl_"),
]


def _zero_based(number: str) -> int:
    return int(number) - 1


_RESNET: Rules = [
    (r"^stem/conv", "conv1"),
    (r"^stem/norm", "bn1"),
    (r"^stage(\d)_block(\d)", lambda m: f"layer{m[1]}.{_zero_based(m[2])}"),
    (r"shortcut/conv", "downsample.0"),
    (r"shortcut/norm", "downsample.1"),
    (r"conv(\d)/conv", r"conv\1"),
    (r"conv(\d)/norm", r"bn\1"),
    (r"^classifier", "fc"),
]
# The blocks of all stages of MobileNetV2 are in one list; a stage starts at this index.
_MOBILENET_FIRST = {"1": 1, "2": 2, "3": 4, "4": 7, "5": 11, "6": 14, "7": 17}
_MOBILENET: Rules = [
    (r"^stem/conv", "features.0.0"),
    (r"^stem/norm", "features.0.1"),
    (r"^head/conv", "features.18.0"),
    (r"^head/norm", "features.18.1"),
    (r"^stage1_block1/depthwise/conv", "features.1.conv.0.0"),
    (r"^stage1_block1/depthwise/norm", "features.1.conv.0.1"),
    (r"^stage1_block1/project/conv", "features.1.conv.1"),
    (r"^stage1_block1/project/norm", "features.1.conv.2"),
    (r"^stage(\d)_block(\d)", lambda m: f"features.{_MOBILENET_FIRST[m[1]] + _zero_based(m[2])}.conv"),
    (r"expand/conv", "0.0"),
    (r"expand/norm", "0.1"),
    (r"depthwise/conv", "1.0"),
    (r"depthwise/norm", "1.1"),
    (r"project/conv", "2"),
    (r"project/norm", "3"),
    (r"^classifier", "classifier.1"),
]
# Blocks of the first stage have no expansion, so all indices in them are smaller by one.
_EFFICIENTNET: Rules = [
    (r"^stem/conv", "features.0.0"),
    (r"^stem/norm", "features.0.1"),
    (r"^head/conv", "features.8.0"),
    (r"^head/norm", "features.8.1"),
    (r"^(stage1_block\d)/depthwise", r"\1/0"),
    (r"^(stage1_block\d)/squeeze_excite", r"\1/1"),
    (r"^(stage1_block\d)/project", r"\1/2"),
    (r"^stage(\d)_block(\d)", lambda m: f"features.{m[1]}.{_zero_based(m[2])}.block"),
    (r"expand/(conv|norm)", r"0/\1"),
    (r"depthwise", "1"),
    (r"squeeze_excite", "2"),
    (r"project", "3"),
    (r"/(\d)/conv", r"/\1/0"),
    (r"/(\d)/norm", r"/\1/1"),
    (r"/(\d)/reduce", r"/\1/fc1"),
    (r"/(\d)/expand", r"/\1/fc2"),
    (r"^classifier", "classifier.1"),
]
_INCEPTION: Rules = [
    (r"^stem(\d)", lambda m: f"Conv2d_{_INCEPTION_STEM[m[1]]}"),
    (r"^(a\d|b|c\d|d|e\d)/", lambda m: f"{_INCEPTION_BLOCKS[m[1]]}/"),
    *_INCEPTION_BRANCHES,
    (r"^(\d\w)/", r"Mixed_\1/"),
    (r"/norm$", "/bn"),
    (r"^classifier", "fc"),
]
_DEIT: Rules = [
    (r"^patches", "patch_embed.proj"),
    (r"^class_token$", "cls_token"),
    (r"^positions$", "pos_embed"),
    (r"^block(\d+)", lambda m: f"blocks.{_zero_based(m[1])}"),
    (r"attention/projection", "attn.proj"),
    (r"attention/qkv", "attn.qkv"),
    (r"mlp(\d)", r"mlp.fc\1"),
    (r"^classifier", "head"),
]
FAMILIES: dict[str, Rules] = {
    "resnet": _RESNET,
    "mobilenet": _MOBILENET,
    "efficientnet": _EFFICIENTNET,
    "inception": _INCEPTION,
    "deit": _DEIT,
}


class PretrainedError(ValueError):
    """A file of weights does not fit the network; the message names the variable."""


def torch_name(model: str, path: tuple[str, ...]) -> str:
    """PyTorch name of the variable at `path`, such as `("stem", "conv", "kernel")`, of the network `model`.

    Raises:
      PretrainedError: no PyTorch names are known for that network.
    """
    rules = next((rules for family, rules in FAMILIES.items() if model.startswith(family)), None)
    if rules is None:
        raise PretrainedError(f"no PyTorch names are known for {model!r}, but for {', '.join(FAMILIES)}")
    *modules, leaf = path if path[-1] in _LEAVES else (*path, "")
    name = "/".join(modules)
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return ".".join(part for part in (*name.split("/"), _LEAVES.get(leaf, "")) if part)


def load(
    path: pathlib.Path, model: str, variables: dict[str, Any], *, prefix: str = "", anew: Sequence[str] = ()
) -> tuple[dict[str, Any], list[str]]:
    """Loads the variables of the network `model` from a file.

    Args:
      path: safetensors file with the names of torchvision or timm, or with Flax names, as `save` writes; a file of
        Flax's msgpack; or the folder of an orbax checkpoint. These two hold variables, parameters alone, or a training
        state with `params`.
      model: name of the network in `models.MODELS`; ignored for Flax names.
      variables: `"params"` and `"batch_stats"` of the network, which define the shapes.
      prefix: what the file has before the paths of the network, as in `bert`; what is not below it is left.
      anew: regular expressions; variables of the network whose path matches one keep their values, and what the file
        holds at such paths is left.

    Returns:
      The variables, and the paths of those that keep their values: also the classifier, if its number of classes
      differs.

    Raises:
      PretrainedError: the file cannot be read, lacks a variable, holds one that the network has not, or one of another
        shape or kind of number, or one that is not finite.
    """
    stored = _read(path)
    flax_names = _has_flax_names(stored)
    stored = _below(prefix, stored, path) if prefix else stored
    starts_anew = _Anew(anew)
    loaded, kept = {}, []
    flat: dict[tuple[str, ...], Any] = traverse_util.flatten_dict(nn.meta.unbox(variables))
    for key, ours in flat.items():
        collection, *place = key
        if collection not in COLLECTIONS:
            loaded[key] = ours
            continue
        if starts_anew("/".join(place)):
            loaded[key] = ours
            kept.append("/".join(place))
            continue
        name = "/".join(key) if flax_names else torch_name(model, tuple(place))
        if name not in stored and f"{name}/{_BOXED}" in stored:
            stored[name] = stored.pop(f"{name}/{_BOXED}")
        if name not in stored:
            longer = next(
                (other for other in stored if other.endswith((f".{name}", name.removeprefix(collection)))), None
            )
            hint = f"; it has {longer!r}: init_prefix is what it has before the names of the network" if longer else ""
            raise PretrainedError(f"{path} has no {name!r}, which {'/'.join(place)} of {model} needs{hint}")
        values = stored.pop(name)
        values = values if flax_names else _to_flax_layout(values, place[-1])
        if values.shape == ours.shape:
            loaded[key] = _converted(f"{name!r} in {path}", values, ours.dtype)
        elif place[0] == _CLASSIFIER:
            loaded[key] = ours
            kept.append("/".join(place))
        else:
            raise PretrainedError(
                f"{name!r} in {path} has shape {values.shape}, {'/'.join(place)} needs {ours.shape}; init_anew names "
                "what starts anew"
            )
        if place[-1] == "var" and (values < 0).any():
            raise PretrainedError(f"{name!r} in {path} holds a negative variance")
    left = [name for name in stored if not _MAY_BE_LEFT.search(name)]
    if unused := sorted(name for name in left if not starts_anew(_place(name, flax_names))):
        raise PretrainedError(
            f"{path} holds {len(unused)} tensors that {model} has no variable for, such as {', '.join(unused[:3])}: "
            "expected a file of this network"
        )
    if unmatched := starts_anew.unmatched():
        raise PretrainedError(f"init_anew: {', '.join(unmatched)} is in no path of {model} or of {path}")
    return nn.meta.replace_boxed(variables, variables | traverse_util.unflatten_dict(loaded)), sorted(kept)


class _Anew:
    """Whether paths match one of some expressions, and which of these matched none."""

    def __init__(self, expressions: Sequence[str]) -> None:
        self._matched = dict.fromkeys(expressions, False)
        for expression in expressions:
            try:
                re.compile(expression)
            except re.error as error:
                raise PretrainedError(f"init_anew={expression!r}: expected a regular expression: {error}") from error

    def __call__(self, path: str) -> bool:
        found = [expression for expression in self._matched if re.search(expression, path)]
        self._matched |= dict.fromkeys(found, True)
        return bool(found)

    def unmatched(self) -> list[str]:
        """The expressions that matched no path so far."""
        return [expression for expression, matched in self._matched.items() if not matched]


def _place(name: str, flax_names: bool) -> str:
    """The path in the name of a tensor, without the collection."""
    return name.partition("/")[2] if flax_names else name


def _below(prefix: str, stored: dict[str, np.ndarray], path: pathlib.Path) -> dict[str, np.ndarray]:
    """The tensors below a prefix, without it.

    Raises:
      PretrainedError: there are none.
    """
    found = {}
    start = prefix.rstrip("/.").removeprefix("params/")
    for name, values in stored.items():
        collection, _, place = name.partition("/") if name.startswith(_FLAX) else ("", "", name)
        for separator in "/.":
            if place.startswith(start + separator):
                rest = place[len(start) + 1 :]
                found[f"{collection}/{rest}" if collection else rest] = values
    if not found:
        raise PretrainedError(f"init_prefix={prefix!r}: {path} has no such names, but {', '.join(list(stored)[:3])}")
    return found


def _converted(place: str, values: np.ndarray, dtype: Any) -> jax.Array:
    """The values in the type of a variable, which has to be of the same kind of numbers."""
    kinds = (jnp.floating, jnp.integer, jnp.complexfloating, jnp.bool_)
    if [jnp.issubdtype(values.dtype, kind) for kind in kinds] != [jnp.issubdtype(dtype, kind) for kind in kinds]:
        raise PretrainedError(f"{place} is {values.dtype}: expected {np.dtype(dtype)}, or others of its kind")
    with np.errstate(over="ignore"):
        converted = values.astype(dtype)
    if not np.isfinite(converted.astype(np.complex128)).all():
        raise PretrainedError(f"{place} holds NaN or infinity as {np.dtype(dtype)}")
    return jnp.asarray(converted)


def _has_flax_names(names: Iterable[str]) -> bool:
    return any(name.startswith("params/") for name in names)


def _read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The tensors of a file; those of the weights of a run are checked."""
    if path.is_dir() or path.suffix == ".msgpack":
        return _flax_names(path, _tree(path))
    try:
        if tensor_file.is_ours(path):
            stored, manifest = tensor_file.load(path)
            if any(name.startswith("codes/") for name in stored):
                raise PretrainedError(
                    f"{path} is a {manifest['kind']}, without float weights: use weights.safetensors beside it"
                )
            return stored
        with safetensors.safe_open(path, framework="numpy") as file:
            return {name: _tensor(file, name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, safetensors.SafetensorError, tensor_file.DamagedFileError) as error:
        expected = "" if isinstance(error, OSError) else "expected safetensors, or Flax's msgpack, called *.msgpack: "
        raise PretrainedError(f"cannot read weights from {path}: {expected}{error}") from error


def _tree(path: pathlib.Path) -> Any:
    """What a file of Flax's msgpack or the folder of an orbax checkpoint holds, with NumPy arrays."""
    try:
        if not path.is_dir():
            return serialization.msgpack_restore(path.read_bytes())
        inside = path / _ORBAX_ITEM
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            place = (inside if inside.is_dir() else path).absolute()
            metadata: Any = checkpointer.metadata(place)
            if metadata.item_metadata is None:
                inner = sorted(folder.name for folder in path.iterdir() if folder.is_dir())
                raise ValueError(f"it is none, and holds the folders {', '.join(inner[:5])}" if inner else "it is none")
            kinds = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), metadata.item_metadata.tree)
            return checkpointer.restore(place, args=ocp.args.PyTreeRestore(restore_args=kinds))
    except Exception as error:  # Of msgpack, orbax, tensorstore or the file system.
        expected = "the folder of one orbax checkpoint" if path.is_dir() else "a file of flax.serialization"
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise PretrainedError(f"cannot read weights from {path}: expected {expected}: {reason}") from error


def _flax_names(path: pathlib.Path, tree: Any) -> dict[str, np.ndarray]:
    """The tensors among variables, parameters alone, or a training state, by Flax names."""
    if not isinstance(tree, Mapping):
        raise PretrainedError(f"cannot read weights from {path}: it holds a {type(tree).__name__}")
    variables = tree if "params" in tree else {"params": tree}
    params = variables["params"]
    if isinstance(params, Mapping) and "params" in params:  # a training state with all variables
        variables = params
    own = {name: variables[name] for name in COLLECTIONS if isinstance(variables.get(name), Mapping)}
    flat: dict[str, Any] = traverse_util.flatten_dict(own, sep="/")
    return {name: np.asarray(values) for name, values in flat.items()}


def _tensor(file: Any, name: str) -> np.ndarray:
    try:
        return file.get_tensor(name)
    except (AttributeError, TypeError, KeyError, ValueError) as error:  # of types that NumPy does not have
        stored = file.get_slice(name).get_dtype()
        raise PretrainedError(f"{name!r} is of type {stored}: expected numbers of NumPy, or bfloat16") from error


def save(path: pathlib.Path, variables: dict[str, Any]) -> None:
    """Writes `"params"` and `"batch_stats"` with their paths as names, such as `params/stem/conv/kernel`.

    Raises:
      PretrainedError: there is nothing to write, or two variables would have one name.
    """
    own = {name: nn.meta.unbox(variables[name]) for name in COLLECTIONS if name in variables}
    flat: dict[str, Any] = traverse_util.flatten_dict(own, sep="/")
    if not flat or len(flat) < len(jax.tree.leaves(own)):
        raise PretrainedError(f"{path}: expected params, in which no two variables have one name if slashes part them")
    arrays = {name: np.asarray(values) for name, values in flat.items()}
    tensor_file.save(path, arrays, {"kind": KIND, "version": VERSION})


def takes_half_ranges(path: pathlib.Path, model: str) -> bool:
    """Whether a file holds torchvision's Inception-v3, whose published weights are for (pixels / 255 − 0.5) / 0.5.

    torchvision calls it `transform_input`; its other networks are for ImageNet's mean and deviation.
    """
    return model.startswith("inception") and not _has_flax_names(_read(path))


def for_inputs(variables: dict[str, Any], mean: ArrayLike, deviation: ArrayLike) -> dict[str, Any]:
    """Inception-v3's variables for inputs of (pixels − mean) / deviation instead of (pixels / 255 − 0.5) / 0.5.

    The first convolution and the statistics after it take the difference, exactly where images are not padded.

    Args:
      variables: those that `load` returned.
      mean, deviation: float[3], of pixels of 0…255.
    """
    scale = jnp.asarray(deviation, jnp.float32) / _HALF_RANGE
    shift = (jnp.asarray(mean, jnp.float32) - _HALF_RANGE) / _HALF_RANGE
    flat: dict[tuple[str, ...], Any] = dict(traverse_util.flatten_dict(variables))
    kernel = flat["params", _FIRST, "conv", "kernel"]
    flat["params", _FIRST, "conv", "kernel"] = kernel * scale[:, None]
    flat["batch_stats", _FIRST, "norm", "mean"] -= jnp.einsum("hwio,i->o", kernel, shift)
    return traverse_util.unflatten_dict(flat)


def _to_flax_layout(values: np.ndarray, leaf: str) -> np.ndarray:
    if leaf != "kernel":
        return values
    return values.transpose(2, 3, 1, 0) if values.ndim == 4 else values.T
