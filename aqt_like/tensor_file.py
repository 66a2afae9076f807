"""Tensor files: safetensors with a manifest and a checksum, so that every change is noticed."""

import hashlib
import json
import pathlib
import uuid
from collections.abc import Mapping
from typing import Any

import jax
import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

_METADATA = "aqt_like"  # The only key: the order of several is another one in each file.
_RESERVED = "__metadata__"
_OF_DAMAGE = (OSError, LookupError, TypeError, AttributeError, ValueError, RecursionError)
_DTYPES = "dtypes"  # of tensors that safetensors for NumPy cannot read back, which are stored as unsigned integers


class DamagedFileError(ValueError):
    """Raised for a file that is not as it was written; the message gives the reason."""


def save(path: pathlib.Path | str, tensors: Mapping[str, np.ndarray], manifest: Mapping[str, Any]) -> None:
    """Writes a safetensors file, atomically.

    Its metadata are one JSON, "aqt_like", of the "manifest" and "sha256", the checksum of the manifest and all tensors.

    Args:
      path: the file.
      tensors: arrays by name, of any numeric type of NumPy or ml_dtypes.
      manifest: what JSON can hold, with "kind" and "version", which `load` asks for.

    Raises:
      ValueError: a tensor is of another type, or has the name of the metadata in the file.
    """
    path = pathlib.Path(path)
    if _RESERVED in tensors:
        raise ValueError(f"{path} cannot hold a tensor called {_RESERVED!r}: safetensors keeps that name for itself")
    stored, dtypes = {}, {}
    for name, values in tensors.items():
        own = np.asarray(values, order="C")
        own = own.astype(own.dtype.newbyteorder("="))
        if own.dtype.kind == "V" and own.dtype != ml_dtypes.bfloat16 and own.dtype.names is None:
            dtypes[name] = own.dtype.name
            own = own.view(f"u{own.dtype.itemsize}")
        stored[name] = own
    # As it is read back: JSON turns tuples into lists and keys into text.
    manifest = json.loads(_compact({**manifest, _DTYPES: dtypes}))
    metadata = {_METADATA: _compact({"sha256": _digest(manifest, stored), "manifest": manifest})}
    try:
        contents = safetensors.numpy.save(stored, metadata)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} cannot hold these tensors: {error}") from error
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")  # of this writer alone
    try:
        temporary.write_bytes(contents)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load(
    path: pathlib.Path | str, *, kind: str | None = None, version: int | None = None
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The tensors and the manifest of a file that `save` wrote.

    Args:
      path: the file.
      kind, version: what the manifest has to say of itself, if given.

    Raises:
      FileNotFoundError: there is no such file.
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
        found = (manifest.get("kind"), manifest.get("version"))
    except (FileNotFoundError, DamagedFileError):
        raise
    except (*_OF_DAMAGE, safetensors.SafetensorError) as error:
        raise DamagedFileError(f"{path} is truncated, or no file of this package: {error!r}") from error
    if kind is not None and found != (kind, version):
        raise DamagedFileError(f"{path} is a {found[0]} of version {found[1]}: expected a {kind} of version {version}")
    return tensors, manifest


def is_ours(path: pathlib.Path) -> bool:
    """Whether a safetensors file is one that `save` wrote, damaged or not; False if it cannot be read."""
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return _METADATA in (file.metadata() or {})
    except (OSError, safetensors.SafetensorError):
        return False


def _compact(document: Mapping[str, Any]) -> str:
    return json.dumps(document, separators=(",", ":"))


def _digest(manifest: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256(_compact(manifest).encode())
    for name in sorted(tensors):
        values = tensors[name]
        digest.update(json.dumps([name, values.dtype.name, list(values.shape)]).encode())
        digest.update(values.tobytes())
    return digest.hexdigest()
