"""Tensors by name, from a safetensors file or a PyTorch checkpoint, without PyTorch and without
running its pickle.

A PyTorch checkpoint since version 1.6 is a zip archive of one pickle, ``data.pkl``, and of one raw
file for each storage. The pickle is read by an unpickler that imports nothing: the few names that
tensors are made of mean functions of this module, and every other name an inert placeholder.
"""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from gnpcli.errors import CheckpointError

Tensors = dict[str, np.ndarray]

STATE_DICT_KEYS = ("model", "state_dict", "model_state_dict")
"""Where training scripts put the weights in what they save besides them."""

_STORAGES: dict[str, Any] = {
    "DoubleStorage": np.float64, "FloatStorage": np.float32, "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16, "LongStorage": np.int64, "IntStorage": np.int32, "ShortStorage": np.int16,
    "CharStorage": np.int8, "ByteStorage": np.uint8, "BoolStorage": np.bool_,
}  # fmt: skip


def read_tensors(path: Path) -> Tensors:
    """Return the tensors of a file, whose format is told by its content.

    A prefix ``module.``, which data-parallel training puts before every name, is dropped.

    Raises:
        CheckpointError: No such file, cut short, of another format, or without a state dict.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(9)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    if start[:4] == b"PK\x03\x04":
        tensors = _read_zip(path)
    elif start[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        raise CheckpointError(
            f"{path} is a bare pickle, which may run any code when it is read: "
            f"{_how_to_convert(path)}"
        )
    elif start[8:] == b"{" or path.suffix == ".safetensors":
        try:
            tensors = load_file(path)
        except SafetensorError as error:
            raise CheckpointError(
                f"{path} is not a whole safetensors file, or was cut short: "
                f"{str(error).rpartition(': ')[2]}"
            ) from error
    else:
        raise CheckpointError(f"{path} is neither a safetensors file nor a PyTorch checkpoint")
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors")
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return tensors


def _how_to_convert(path: Path) -> str:
    return (
        'where PyTorch is installed, convert it with `python -c "import torch, safetensors.torch '
        "as s; s.save_file("
        f"torch.load('{path}', weights_only=True), '{path.with_suffix('.safetensors')}')\"`"
    )


class _Storage(NamedTuple):
    file: str
    dtype: np.dtype
    numel: int


class _Tensor(NamedTuple):
    """A view of a storage, in elements; nothing is read before `_load`."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Inert:
    """What any other class or function of a pickle becomes: takes everything, does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def append(self, value: Any) -> None: ...

    def extend(self, values: Any) -> None: ...


def _rebuild_tensor(
    storage: _Storage, offset: int, shape: Any, strides: Any, *rest: Any
) -> _Tensor:
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _rebuild_parameter(data: _Tensor, *rest: Any) -> _Tensor:
    return data


class _TensorUnpickler(pickle.Unpickler):
    """Unpickles a state dict; `find_class` imports nothing, so nothing outside this module can be
    called.
    """

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _STORAGES:
            return np.dtype(_STORAGES[name])
        known = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
            ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
            ("torch", "Size"): tuple,
        }
        return known.get((module, name), _Inert)

    def persistent_load(self, pid: Any) -> Any:
        kind, dtype, key, _, numel = pid
        if kind != "storage" or not isinstance(dtype, np.dtype):
            raise pickle.UnpicklingError(f"a storage of unknown type {key}")
        return _Storage(str(key), dtype, int(numel))


def _read_zip(path: Path) -> Tensors:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            pickles = [name for name in names if name.rpartition("/")[2] == "data.pkl"]
            if len(pickles) != 1:
                raise CheckpointError(
                    f"{path} is a zip archive, but not a PyTorch checkpoint (it has no data.pkl)"
                )
            root = pickles[0].removesuffix("data.pkl")
            if f"{root}constants.pkl" in names:
                raise CheckpointError(
                    f"{path} is a TorchScript program, not a state dict: {_how_to_convert(path)}"
                )
            if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
                raise CheckpointError(
                    f"{path} was written on a big-endian machine: {_how_to_convert(path)}"
                )
            with archive.open(pickles[0]) as file:
                content = _TensorUnpickler(file).load()
            chosen = _state_dict(content, path)
            return {name: _load(archive, root, tensor) for name, tensor in chosen.items()}
    except CheckpointError:
        raise
    except zipfile.BadZipFile as error:
        raise CheckpointError(
            f"{path} is not a whole PyTorch checkpoint, or was cut short: {error}"
        ) from error
    # A pickle that is not what it should be fails in any way: each is the file's fault, none is a
    # bug to show.
    except Exception as error:
        raise CheckpointError(
            f"{path} is not a PyTorch checkpoint that can be read without PyTorch ({error}): "
            f"{_how_to_convert(path)}"
        ) from error


def _state_dict(content: Any, path: Path) -> dict[str, _Tensor]:
    """Return the tensors of a state dict, or of the one in a training script's checkpoint."""
    for candidate in (
        content,
        *(content.get(key) for key in STATE_DICT_KEYS if isinstance(content, Mapping)),
    ):
        if isinstance(candidate, Mapping):
            tensors = {
                str(name): value for name, value in candidate.items() if isinstance(value, _Tensor)
            }
            if tensors:
                return tensors
    held = (
        f"; it holds {', '.join(map(str, list(content)[:5]))}"
        if isinstance(content, Mapping)
        else ""
    )
    raise CheckpointError(
        f"{path} holds no state dict, neither itself nor as {', '.join(STATE_DICT_KEYS)}{held}"
    )


def _load(archive: zipfile.ZipFile, root: str, tensor: _Tensor) -> np.ndarray:
    flat = np.frombuffer(archive.read(f"{root}data/{tensor.storage.file}"), tensor.storage.dtype)
    last = tensor.offset + sum(
        (size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True)
    )
    is_empty = 0 in tensor.shape
    if min((tensor.offset, *tensor.shape, *tensor.strides)) < 0 or (
        not is_empty and last >= len(flat)
    ):
        raise pickle.UnpicklingError("a tensor reaches beyond its storage")
    if is_empty:
        return np.empty(tensor.shape, flat.dtype)
    strides = [stride * flat.itemsize for stride in tensor.strides]
    return np.lib.stride_tricks.as_strided(flat[tensor.offset :], tensor.shape, strides).copy()
