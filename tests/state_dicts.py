"""State dicts as PyTorch names and lays them out, and checkpoints as it writes them, made without
it.
"""

from __future__ import annotations

import pickle
import sys
import types
import zipfile
from collections import OrderedDict

import numpy as np


def vit_tensors(*, dim=64, depth=2, patch=2, side=4, channels=3, classes=10, mlp=256, seed=0):
    """The tensors of timm's VisionTransformer with `side` x `side` patches, random."""
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return (0.1 * rng.normal(size=shape)).astype(np.float32)

    tensors = {
        "cls_token": draw(1, 1, dim),
        "pos_embed": draw(1, 1 + side**2, dim),
        "patch_embed.proj.weight": draw(dim, channels, patch, patch),
        "patch_embed.proj.bias": draw(dim),
        "norm.weight": 1 + draw(dim),
        "norm.bias": draw(dim),
        "head.weight": draw(classes, dim),
        "head.bias": draw(classes),
    }
    for index in range(depth):
        for name, shape in {
            "norm1": (dim,),
            "attn.qkv": (3 * dim, dim),
            "attn.proj": (dim, dim),
            "norm2": (dim,),
            "mlp.fc1": (mlp, dim),
            "mlp.fc2": (dim, mlp),
        }.items():
            tensors[f"blocks.{index}.{name}.weight"] = draw(*shape) + (
                1 if name.startswith("norm") else 0
            )
            tensors[f"blocks.{index}.{name}.bias"] = draw(shape[0])
    return tensors


class _Stored:
    """Stands for a tensor while pickling: a view of a storage."""

    def __init__(self, array, key):
        self.array, self.key = array, key


def write_torch(path, content, *, extra=()):
    """Write what ``torch.save(content)`` does, arrays for tensors, in PyTorch's zip format.

    A pair (array, offset) is a tensor that begins so many elements into its storage.
    """
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    name = "_rebuild_tensor_v2"
    setattr(utils, name, _global("torch._utils", name))
    storages = {}
    for dtype, name in (
        ("float32", "FloatStorage"),
        ("float16", "HalfStorage"),
        ("int64", "LongStorage"),
    ):
        storages[dtype] = _global("torch", name)
        setattr(torch, name, storages[dtype])
    saved: list[np.ndarray] = []

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            if isinstance(obj, _Stored):
                return ("storage", storages[obj.array.dtype.name], obj.key, "cpu", obj.array.size)
            return None

        def reducer_override(self, obj):
            if isinstance(obj, np.ndarray):
                base, offset = obj, 0
                if obj.base is not None:
                    base = obj.base
                    offset = (obj.ctypes.data - base.ctypes.data) // obj.itemsize
                stored = _Stored(base, str(len(saved)))
                saved.append(base)
                strides = tuple(stride // obj.itemsize for stride in obj.strides)
                return utils._rebuild_tensor_v2, (
                    stored,
                    offset,
                    obj.shape,
                    strides,
                    False,
                    OrderedDict(),
                )
            return NotImplemented

    modules = {"torch": torch, "torch._utils": utils}
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        with zipfile.ZipFile(path, "w") as archive:
            with archive.open("weights/data.pkl", "w") as file:
                Pickler(file, protocol=2).dump(content)
            archive.writestr("weights/byteorder", "little")
            for key, array in enumerate(saved):
                archive.writestr(f"weights/data/{key}", array.tobytes())
            for name, text in extra:
                archive.writestr(name, text)
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def _global(module, name):
    def stand_in(*args):
        raise AssertionError("pickled by name, never called")

    stand_in.__module__, stand_in.__qualname__, stand_in.__name__ = module, name, name
    return stand_in
