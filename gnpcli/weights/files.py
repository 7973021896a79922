"""Tensors by name, from a safetensors file or a PyTorch checkpoint.

Neither needs PyTorch, and no code of a pickle runs. A PyTorch checkpoint since version 1.6 is a zip
archive. It holds one pickle, ``data.pkl``, and one raw file for each storage. The unpickler imports
nothing. The few names that tensors are made of mean functions of this module. Every other name is
an inert placeholder.
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
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}

_ZIP = b"PK\x03\x04"
_PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
"""How a bare pickle of protocol 2 to 5 begins."""
_HEADER_LENGTH = 8
"""Bytes of the length that a safetensors file begins with; its header, a JSON object, follows."""


def read_tensors(path: Path) -> Tensors:
    """Return the tensors of a file. The content tells its format.

    Data-parallel training puts the prefix ``module.`` before every name. It is dropped.

    Raises:
        CheckpointError: No such file, cut short, of another format, or without a state dict.
    """
    tensors = _read(path)
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors")
    if all(name.startswith("module.") for name in tensors):
        return {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return tensors


def _read(path: Path) -> Tensors:
    start = _first_bytes(path)
    if start.startswith(_ZIP):
        return _read_zip(path)
    if start.startswith(_PICKLES):
        raise CheckpointError(
            f"{path} is a bare pickle, which may run any code when it is read: "
            f"{_how_to_convert(path)}"
        )
    if start[_HEADER_LENGTH:] == b"{" or path.suffix == ".safetensors":
        return _read_safetensors(path)
    raise CheckpointError(f"{path} is neither a safetensors file nor a PyTorch checkpoint")


def _first_bytes(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(_HEADER_LENGTH + 1)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error


def _read_safetensors(path: Path) -> Tensors:
    try:
        tensors: Tensors = load_file(path)
    except SafetensorError as error:
        reason = str(error).rpartition(": ")[2]
        raise CheckpointError(
            f"{path} is not a whole safetensors file, or was cut short: {reason}"
        ) from error
    return tensors


def _read_zip(path: Path) -> Tensors:
    try:
        with zipfile.ZipFile(path) as archive:
            return _read_archive(archive, path)
    except CheckpointError:
        raise
    except zipfile.BadZipFile as error:
        raise CheckpointError(
            f"{path} is not a whole PyTorch checkpoint, or was cut short: {error}"
        ) from error
    # A damaged pickle can raise anything. The file is at fault, not this program.
    except Exception as error:
        raise CheckpointError(
            f"{path} is not a PyTorch checkpoint that can be read without PyTorch ({error}): "
            f"{_how_to_convert(path)}"
        ) from error


def _read_archive(archive: zipfile.ZipFile, path: Path) -> Tensors:
    root = _root(archive, path)
    _check_format(archive, root, path)
    with archive.open(f"{root}data.pkl") as file:
        content = _TensorUnpickler(file).load()
    tensors = _state_dict(content, path)
    return {name: _load(archive, root, tensor) for name, tensor in tensors.items()}


def _root(archive: zipfile.ZipFile, path: Path) -> str:
    """Return the folder of ``data.pkl`` in the archive, with its slash; empty for the top."""
    pickles = [name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl"]
    if len(pickles) != 1:
        raise CheckpointError(
            f"{path} is a zip archive, but not a PyTorch checkpoint (it has no data.pkl)"
        )
    return pickles[0].removesuffix("data.pkl")


def _check_format(archive: zipfile.ZipFile, root: str, path: Path) -> None:
    """Refuse a TorchScript program, and numbers in big-endian byte order."""
    names = archive.namelist()
    if f"{root}constants.pkl" in names:
        raise CheckpointError(
            f"{path} is a TorchScript program, not a state dict: {_how_to_convert(path)}"
        )
    if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
        raise CheckpointError(
            f"{path} was written on a big-endian machine: {_how_to_convert(path)}"
        )


def _how_to_convert(path: Path) -> str:
    load = f"torch.load('{path}', weights_only=True)"
    target = path.with_suffix(".safetensors")
    command = f"import torch, safetensors.torch as s; s.save_file({load}, '{target}')"
    return f'where PyTorch is installed, convert it with `python -c "{command}"`'


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
    """Unpickles a state dict.

    `find_class` imports nothing, so a pickle can call nothing outside this module.
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


def _state_dict(content: Any, path: Path) -> dict[str, _Tensor]:
    """Return the tensors of a state dict, or of the one in a training script's checkpoint."""
    for candidate in _candidates(content):
        tensors = _tensors_of(candidate)
        if tensors:
            return tensors
    held = ""
    if isinstance(content, Mapping):
        held = f"; it holds {', '.join(map(str, list(content)[:5]))}"
    raise CheckpointError(
        f"{path} holds no state dict, neither itself nor as {', '.join(STATE_DICT_KEYS)}{held}"
    )


def _candidates(content: Any) -> list[Any]:
    """Return what may be a state dict: the content itself, then its values in order."""
    if not isinstance(content, Mapping):
        return [content]
    return [content, *(content.get(key) for key in STATE_DICT_KEYS)]


def _tensors_of(candidate: Any) -> dict[str, _Tensor]:
    """Return the tensors of a mapping by name; empty where it is none."""
    if not isinstance(candidate, Mapping):
        return {}
    return {str(name): value for name, value in candidate.items() if isinstance(value, _Tensor)}


def _load(archive: zipfile.ZipFile, root: str, tensor: _Tensor) -> np.ndarray:
    """Copy a tensor out of its storage."""
    content = archive.read(f"{root}data/{tensor.storage.file}")
    flat = np.frombuffer(content, tensor.storage.dtype)
    if not _lies_within(tensor, len(flat)):
        raise pickle.UnpicklingError("a tensor reaches beyond its storage")
    if 0 in tensor.shape:
        return np.empty(tensor.shape, flat.dtype)
    strides = [stride * flat.itemsize for stride in tensor.strides]
    return np.lib.stride_tricks.as_strided(flat[tensor.offset :], tensor.shape, strides).copy()


def _lies_within(tensor: _Tensor, num_elements: int) -> bool:
    """Return whether every element of a tensor is one of its storage's."""
    steps = [(size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True)]
    if min((tensor.offset, *tensor.shape, *tensor.strides)) < 0:
        return False
    return 0 in tensor.shape or tensor.offset + sum(steps) < num_elements
