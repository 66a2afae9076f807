"""Tensor files: safetensors with a manifest and a checksum, so that every change is noticed."""

import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

_METADATA = "aqt_like"  # The only key: the order of several is another one in each file.
_DTYPES = "dtypes"  # of tensors that safetensors for NumPy cannot read back, which are stored as unsigned integers


class DamagedFileError(ValueError):
    """Raised for a file that is not as it was written; the message gives the reason."""


def save(path: pathlib.Path | str, tensors: Mapping[str, np.ndarray], manifest: Mapping[str, Any]) -> None:
    """Writes a safetensors file, atomically.

    Its metadata are one JSON, "aqt_like", of the "manifest" and "sha256", the checksum of the manifest and all tensors.

    Args:
      path: the file.
      tensors: arrays by name, of any type of NumPy or ml_dtypes.
      manifest: what JSON can hold, with "kind" and "version", which `load` asks for.
    """
    path = pathlib.Path(path)
    tensors = {name: np.asarray(values, order="C") for name, values in tensors.items()}
    unknown = {name: x.dtype for name, x in tensors.items() if x.dtype.kind == "V" and x.dtype != ml_dtypes.bfloat16}
    for name, dtype in unknown.items():
        tensors[name] = tensors[name].view(f"u{dtype.itemsize}")
    manifest = {**manifest, _DTYPES: {name: dtype.name for name, dtype in unknown.items()}}
    metadata = {"sha256": _digest(manifest, tensors), "manifest": manifest}
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_bytes(safetensors.numpy.save(tensors, {_METADATA: _compact(metadata)}))
    temporary.replace(path)


def load(path: pathlib.Path | str, *, kind: str, version: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The tensors and the manifest of a file that `save` wrote.

    Raises:
      DamagedFileError: the file is truncated, altered, of another kind or version, or not written by `save`.
    """
    if pathlib.Path(path).is_dir():
        raise DamagedFileError(f"{path} is a directory: expected a file")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = json.loads((file.metadata() or {})[_METADATA])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        manifest = metadata["manifest"]
        if _digest(manifest, tensors) != metadata["sha256"]:
            raise DamagedFileError(f"{path} is not as it was written: its checksum differs")
        for name, dtype in manifest.pop(_DTYPES).items():
            tensors[name] = tensors[name].view(jax.numpy.dtype(dtype))
    except (FileNotFoundError, DamagedFileError):
        raise
    except (
        safetensors.SafetensorError,
        OSError,
        LookupError,
        TypeError,
        AttributeError,
        ValueError,
        RecursionError,
    ) as error:
        raise DamagedFileError(f"{path} is truncated, or no file of this package: {error!r}") from error
    if (found := (manifest.get("kind"), manifest.get("version"))) != (kind, version):
        raise DamagedFileError(f"{path} is a {found[0]} of version {found[1]}: expected a {kind} of version {version}")
    return tensors, manifest


def _compact(document: Mapping[str, Any]) -> str:
    return json.dumps(document, separators=(",", ":"))


def _digest(manifest: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256(_compact(manifest).encode())
    for name in sorted(tensors):
        values = tensors[name]
        digest.update(json.dumps([name, values.dtype.name, list(values.shape)]).encode())
        digest.update(values.tobytes())
    return digest.hexdigest()
