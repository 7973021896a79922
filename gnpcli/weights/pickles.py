"""The pickle of a PyTorch checkpoint, read without PyTorch, and without running any code of it.

The unpickler imports nothing. The few names that tensors are made of mean functions of this module.
Every other name is an inert placeholder. What Python's own unpickler cannot bear is refused before
it begins.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

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

_DEEPEST_TUPLE = 100
_LARGEST_TUPLE = 10_000
"""Elements of a tuple with those of all tuples in it."""


class Storage(NamedTuple):
    """The raw file that a tensor looks into."""

    file: str
    dtype: np.dtype
    numel: int


class Tensor(NamedTuple):
    """A view of a storage, in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def load_pickle(content: bytes) -> Any:
    """Return what ``data.pkl`` holds, with a `Tensor` for each tensor.

    Raises:
        Exception: Of nearly any class: the pickle is damaged, or made to do harm.
    """
    _check_bounds(content)
    return _TensorUnpickler(io.BytesIO(content)).load()


class _Extent(NamedTuple):
    """How deep a tuple is nested, and how large it is when it is written out; 0 of all else."""

    depth: int
    size: int


_ANYTHING_ELSE = _Extent(0, 0)
_MARK = _Extent(-1, 0)


def _check_bounds(content: bytes) -> None:
    """Refuse a pickle that makes Python's unpickler run out of stack, memory or time.

    Python hashes a tuple anew whenever it becomes a key, to any depth. The unpickler allots places
    to keep objects at up to the highest number that the pickle names.
    """
    stack: list[_Extent] = []
    kept: dict[int, _Extent] = {}
    for opcode, argument, _ in pickletools.genops(content):
        if "PUT" in opcode.name or opcode.name == "MEMOIZE":
            place = len(kept) if argument is None else argument
            if place > len(content):
                raise pickle.UnpicklingError(f"an object is kept at place {place:,}")
            kept[place] = stack[-1]
        elif "GET" in opcode.name:
            stack.append(kept[int(argument or 0)])
        elif opcode.name == "DUP":
            stack.append(stack[-1])
        else:
            made = _made(opcode.name, _take(stack, opcode.stack_before))
            stack += [made] * len(opcode.stack_after)


def _take(stack: list[_Extent], kinds: Sequence[pickletools.StackObject]) -> list[_Extent]:
    """Remove from the stack what an operation takes: all above a mark, or as many as `kinds`."""
    taken: list[_Extent] = []
    if pickletools.markobject in kinds:
        while (top := stack.pop()) is not _MARK:
            taken.append(top)
        kinds = kinds[: kinds.index(pickletools.markobject)]
    return taken + [stack.pop() for _ in kinds]


def _made(operation: str, parts: Sequence[_Extent]) -> _Extent:
    if operation == "MARK":
        return _MARK
    if "TUPLE" not in operation:
        return _ANYTHING_ELSE
    depth = 1 + max((part.depth for part in parts), default=0)
    size = len(parts) + sum(part.size for part in parts)
    if depth > _DEEPEST_TUPLE or size > _LARGEST_TUPLE:
        raise pickle.UnpicklingError(f"a tuple of {size:,} elements, {depth:,} deep")
    return _Extent(depth, size)


class _Inert:
    """What any other class or function of a pickle becomes: takes everything, does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def append(self, value: Any) -> None: ...

    def extend(self, values: Any) -> None: ...


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> Tensor:
    if not isinstance(storage, Storage):
        raise pickle.UnpicklingError("a tensor without a storage")
    return Tensor(storage, int(offset), _size(shape), _size(strides))


def _rebuild_parameter(data: Any, *rest: Any) -> Tensor:
    if not isinstance(data, Tensor):
        raise pickle.UnpicklingError("a parameter that is no tensor")
    return data


def _size(values: Any = ()) -> tuple[int, ...]:
    return tuple(map(int, values))


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
            ("torch", "Size"): _size,
        }
        return known.get((module, name), _Inert)

    def persistent_load(self, pid: Any) -> Any:
        kind, dtype, key, _, numel = pid
        if kind != "storage" or not isinstance(dtype, np.dtype):
            raise pickle.UnpicklingError(f"a storage of unknown type {key}")
        return Storage(str(key), dtype, int(numel))
