"""Tensors by name, from a safetensors file or a PyTorch checkpoint.

Neither needs PyTorch, and no code of a pickle runs. A PyTorch checkpoint since version 1.6 is a zip
archive. It holds one pickle, ``data.pkl``, and one raw file for each storage."""

from __future__ import annotations

import math
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from gnpcli.errors import CheckpointError
from gnpcli.git_lfs import pointer_advice
from gnpcli.weights.pickles import Storage, Tensor, load_pickle

Tensors = dict[str, np.ndarray]

STATE_DICT_KEYS = ("model", "state_dict", "model_state_dict")
"""Where training scripts put the weights in what they save besides them."""

_ZIP = b"PK\x03\x04"
_PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
"""How a bare pickle of protocol 2 to 5 begins."""
_SAFETENSORS_KINDS = (
    *("F64", "F32", "F16", "BF16"),
    *("I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"),
)
_LONGEST_TEXT = 100
"""Characters of a foreign text in a message."""
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
    advice = pointer_advice(path)
    if advice is not None:
        raise CheckpointError(advice)
    if start.lstrip().startswith(b"<"):
        raise CheckpointError(
            f"{path} is a page of the web, not weights: the site answered the download with it"
        )
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
    if path.exists() and not path.is_file():
        raise CheckpointError(f"cannot read {path}: it is no file")
    try:
        with open(path, "rb") as file:
            return file.read(_HEADER_LENGTH + 1)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error


def _read_safetensors(path: Path) -> Tensors:
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: _read_tensor(file, name, path) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        reason = _shortened(str(error).rpartition(": ")[2])
        raise CheckpointError(
            f"{path} is not a whole safetensors file, or was cut short: {reason}"
        ) from error
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error


def _read_tensor(file: Any, name: str, path: Path) -> np.ndarray:
    kind = file.get_slice(name).get_dtype()
    if kind not in _SAFETENSORS_KINDS:
        raise CheckpointError(
            f"{path}: {_shortened(name)} holds numbers of the type {kind}, which is none of "
            f"{', '.join(_SAFETENSORS_KINDS)}: save it with one of these"
        )
    tensor: np.ndarray = file.get_tensor(name)
    return tensor


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}..."


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
        reason = _shortened(str(error))
        raise CheckpointError(
            f"{path} is not a PyTorch checkpoint that can be read without PyTorch ({reason}): "
            f"{_how_to_convert(path)}"
        ) from error


def _read_archive(archive: zipfile.ZipFile, path: Path) -> Tensors:
    root = _root(archive, path)
    _check_format(archive, root, path)
    tensors = _state_dict(load_pickle(archive.read(f"{root}data.pkl")), path)
    storages = _Storages(archive, root)
    return {name: storages.view(tensor) for name, tensor in tensors.items()}


def _root(archive: zipfile.ZipFile, path: Path) -> str:
    """Return the folder of ``data.pkl`` in the archive, with its slash; empty for the top."""
    pickles = [name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl"]
    if len(pickles) != 1:
        raise CheckpointError(
            f"{path} is a zip archive, but not a PyTorch checkpoint (it has no data.pkl)"
        )
    return pickles[0].removesuffix("data.pkl")


def _check_format(archive: zipfile.ZipFile, root: str, path: Path) -> None:
    """Refuse compressed members, a TorchScript program, and big-endian numbers.

    PyTorch compresses nothing. Members that are stored as they are take no more than the file.
    """
    members = archive.infolist()
    is_stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
    if not is_stored or sum(member.file_size for member in members) > path.stat().st_size:
        raise CheckpointError(
            f"{path} holds compressed or overlapping members, which PyTorch does not write and "
            f"which may grow without limit: {_how_to_convert(path)}"
        )
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


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    """Return the tensors of a state dict, or of the one in a training script's checkpoint."""
    for candidate in _candidates(content):
        tensors = _tensors_of(candidate)
        if tensors:
            return tensors
    held = ""
    if isinstance(content, Mapping):
        held = f"; it holds {', '.join(_shortened(str(key)) for key in list(content)[:5])}"
    raise CheckpointError(
        f"{path} holds no state dict, neither itself nor as {', '.join(STATE_DICT_KEYS)}{held}"
    )


def _candidates(content: Any) -> list[Any]:
    """Return what may be a state dict: the content itself, then its values in order."""
    if not isinstance(content, Mapping):
        return [content]
    return [content, *(content.get(key) for key in STATE_DICT_KEYS)]


def _tensors_of(candidate: Any) -> dict[str, Tensor]:
    """Return the tensors of a mapping by name; empty where it is none."""
    if not isinstance(candidate, Mapping):
        return {}
    return {str(name): value for name, value in candidate.items() if isinstance(value, Tensor)}


class _Storages:
    """The raw files of an archive, each read once.

    A tensor looks into its storage and copies nothing: all tensors take the memory of the file.
    """

    def __init__(self, archive: zipfile.ZipFile, root: str):
        self._archive, self._root = archive, root
        self._read: dict[str, bytes] = {}

    def view(self, tensor: Tensor) -> np.ndarray:
        """Return a tensor, read-only.

        Raises:
            UnpicklingError: It reaches beyond its storage, or is larger.
        """
        flat = self._flat(tensor.storage)
        if not _lies_within(tensor, len(flat)):
            raise pickle.UnpicklingError("a tensor reaches beyond its storage, or is larger")
        if 0 in tensor.shape:
            return np.empty(tensor.shape, flat.dtype)
        strides = [stride * flat.itemsize for stride in tensor.strides]
        start = flat[tensor.offset :]
        return np.lib.stride_tricks.as_strided(start, tensor.shape, strides, writeable=False)

    def _flat(self, storage: Storage) -> np.ndarray:
        name = storage.file
        if name not in self._read:
            self._read[name] = self._archive.read(f"{self._root}data/{name}")
        return np.frombuffer(self._read[name], storage.dtype)


def _lies_within(tensor: Tensor, num_elements: int) -> bool:
    """Return whether every element of a tensor is one of its storage's, and none comes twice."""
    if min((tensor.offset, *tensor.shape, *tensor.strides), default=0) < 0:
        return False
    if 0 in tensor.shape:
        return True
    steps = [(size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True)]
    is_larger = math.prod(tensor.shape) > num_elements
    return not is_larger and tensor.offset + sum(steps) < num_elements
