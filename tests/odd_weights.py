"""Files that pass for weights and are not: damaged, hostile, of another kind, or made by accident.

Each must end in a `CheckpointError`, within little memory and time. Campaigns take them from
`ODD_WEIGHTS`, a function that writes each file.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

Writer = Callable[[Path], object]

POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
    b"size 346284714\n"
)
"""What Git LFS leaves in place of a file that it has not fetched."""
PAGE = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head><body>Sign in</body></html>\n"

# --- safetensors


def safetensors(header: Any, body: bytes = b"", *, length: int | None = None) -> Writer:
    """Return what writes a safetensors file of a header, as JSON or as bytes, and a body.

    `length` is what the file says of its header; None tells the truth.
    """
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    told = struct.pack("<Q", len(text) if length is None else length)
    return lambda path: path.write_bytes(told + text + body)


def tensor(
    shape: Any = (2,), offsets: Any = (0, 8), kind: Any = "F32", **more: Any
) -> dict[str, Any]:
    return {"a": {"dtype": kind, "shape": shape, "data_offsets": offsets, **more}}


NUMBERS = bytes(8)
SAFETENSORS: dict[str, Writer] = {
    "header length 0": safetensors(b"", length=0),
    "header length 2**63": safetensors(tensor(), NUMBERS, length=2**63),
    "header length 2**64 - 1": safetensors(tensor(), NUMBERS, length=2**64 - 1),
    "header length beyond the file": safetensors(tensor(), NUMBERS, length=10_000),
    "header length too short": safetensors(tensor(), NUMBERS, length=20),
    "header not JSON": safetensors(b"{not json}", NUMBERS),
    "header not UTF-8": safetensors(b'{"\xff\xfe": 1}', NUMBERS),
    "header a list": safetensors([1, 2], NUMBERS),
    "header a number": safetensors(b"{1}", NUMBERS),
    "header 100,000 deep": safetensors(b'{"a":' + b"[" * 100_000, NUMBERS),
    "header of a huge number": safetensors(b'{"a": ' + b"9" * 10_000 + b"}", NUMBERS),
    "header with NaN": safetensors(b'{"a": NaN}', NUMBERS),
    "header of nulls": safetensors(b"{" + bytes(100), NUMBERS),
    "metadata no mapping": safetensors({"__metadata__": [1], **tensor()}, NUMBERS),
    "metadata of numbers": safetensors({"__metadata__": {"a": 1}, **tensor()}, NUMBERS),
    "only metadata": safetensors({"__metadata__": {"format": "pt"}}),
    "tensor null": safetensors({"a": None}, NUMBERS),
    "no type": safetensors({"a": {"shape": [2], "data_offsets": [0, 8]}}, NUMBERS),
    "no shape": safetensors({"a": {"dtype": "F32", "data_offsets": [0, 8]}}, NUMBERS),
    "no offsets": safetensors({"a": {"dtype": "F32", "shape": [2]}}, NUMBERS),
    "shape negative": safetensors(tensor(shape=[-2]), NUMBERS),
    "shape of a text": safetensors(tensor(shape=["2"]), NUMBERS),
    "shape of a fraction": safetensors(tensor(shape=[2.5]), NUMBERS),
    "shape too large": safetensors(tensor(shape=[1000]), NUMBERS),
    "shape of 2**63": safetensors(tensor(shape=[2**63, 2**63]), NUMBERS),
    "shape of 10**30": safetensors(tensor(shape=[10**30]), NUMBERS),
    "offsets swapped": safetensors(tensor(offsets=[8, 0]), NUMBERS),
    "offsets negative": safetensors(tensor(offsets=[-8, 0]), NUMBERS),
    "offsets beyond the file": safetensors(tensor(offsets=[0, 8]), b""),
    "offsets leave a hole": safetensors(tensor(offsets=[8, 16]), bytes(16)),
    "offsets of three": safetensors(tensor(offsets=[0, 4, 8]), NUMBERS),
    "offsets overlap": safetensors(
        {**tensor(), "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}, bytes(12)
    ),
    "two tensors at one place": safetensors(
        {**tensor(), "b": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, NUMBERS
    ),
    "bytes after the last tensor": safetensors(tensor(), bytes(16)),
    "unknown type": safetensors(tensor(kind="X99"), NUMBERS),
    "type null": safetensors(tensor(kind=None), NUMBERS),
    "type F8_E4M3": safetensors(tensor(shape=[8], kind="F8_E4M3"), NUMBERS),
    "type F8_E5M2": safetensors(tensor(shape=[8], kind="F8_E5M2"), NUMBERS),
    "type F8_E8M0": safetensors(tensor(shape=[8], kind="F8_E8M0"), NUMBERS),
    "type F4": safetensors(tensor(shape=[16], kind="F4"), NUMBERS),
    "type C64": safetensors(tensor(shape=[1], kind="C64"), NUMBERS),
    "a long name of FP8": safetensors(
        {"n" * 10_000: {"dtype": "F8_E4M3", "shape": [8], "data_offsets": [0, 8]}}, NUMBERS
    ),
}

# --- PyTorch


def torch_zip(
    program: bytes,
    storages: Mapping[str, bytes] | None = None,
    *,
    compression: int = zipfile.ZIP_STORED,
    more: Mapping[str, bytes] | None = None,
) -> Writer:
    """Return what writes a checkpoint of a pickle and of storages by name."""

    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w", compression) as archive:
            archive.writestr("w/data.pkl", program)
            for name, content in (storages or {}).items():
                archive.writestr(f"w/data/{name}", content)
            for name, content in (more or {}).items():
                archive.writestr(f"w/{name}", content)

    return write


def of_a_tensor(
    *,
    shape: Any = (2,),
    strides: Any = (1,),
    offset: Any = 0,
    storage: Any = ("storage", "FloatStorage", "0", "cpu", 2),
) -> bytes:
    """Return the pickle of ``{"a": tensor}``, protocol 2."""
    kind, *rest = storage
    named = b"ctorch\n" + str(rest[0]).encode() + b"\n"
    key, device, numel = rest[1:]
    pid = b"(" + _plain(kind) + named + _plain(key) + _plain(device) + _plain(numel) + b"tQ"
    build = b"ctorch._utils\n_rebuild_tensor_v2\n("
    build += pid + _plain(offset) + _plain(shape) + _plain(strides) + b"\x89}tR"
    return b"\x80\x02}" + _plain("a") + build + b"s."


def _plain(value: Any) -> bytes:
    """Return the operations that push a plain value."""
    return pickle.dumps(value, protocol=2)[2:-1]


def bomb(path: Path) -> None:
    """Write a checkpoint of 270 kB whose tensor is 256 MB."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w/data.pkl", of_a_tensor(shape=(2**26,)))
        with archive.open("w/data/0", "w", force_zip64=True) as file:
            for _ in range(16):
                file.write(bytes(1 << 24))


def overlapping(path: Path) -> None:
    """Write a zip in which a thousand names stand for one member."""
    torch_zip(of_a_tensor(), {"0": bytes(100_000)})(path)
    with zipfile.ZipFile(path, "a") as archive:
        original = archive.getinfo("w/data/0")
        for number in range(1, 1000):
            other = zipfile.ZipInfo(f"w/data/{number}")
            for name in ("header_offset", "CRC", "compress_size", "file_size", "flag_bits"):
                setattr(other, name, getattr(original, name))
            archive.filelist.append(other)
            archive.NameToInfo[other.filename] = other
        archive._didModify = True  # type: ignore[attr-defined]


def changed(write: Writer, change: Callable[[bytes], bytes], path: Path) -> None:
    """Write a file and change its bytes."""
    write(path)
    path.write_bytes(change(path.read_bytes()))


def pairs_of_pairs(count: int) -> bytes:
    """Return a pickle whose key is a pair of pairs and so on, of 2**count elements."""
    first = b")q\x00"
    twice = (b"h%c" % number + b"\x86q%c" % (number + 1) for number in range(count))
    return b"\x80\x02}" + first + b"".join(twice) + b"K\x01s."


PLAIN, ENCRYPTED = b"PK\x01\x02\x14\x03\x14\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01"
GOOD = torch_zip(of_a_tensor(), {"0": NUMBERS})
DEEP = 200_000
TORCH: dict[str, Writer] = {
    "deflated": torch_zip(of_a_tensor(), {"0": NUMBERS}, compression=zipfile.ZIP_DEFLATED),
    "bzip2": torch_zip(of_a_tensor(), {"0": NUMBERS}, compression=zipfile.ZIP_BZIP2),
    "LZMA": torch_zip(of_a_tensor(), {"0": NUMBERS}, compression=zipfile.ZIP_LZMA),
    "deflated, 256 MB": bomb,
    "members that overlap": overlapping,
    "no storage": torch_zip(of_a_tensor()),
    "storage of another size": torch_zip(of_a_tensor(), {"0": bytes(7)}),
    "storage too short": torch_zip(of_a_tensor(), {"0": bytes(4)}),
    "shape negative": torch_zip(of_a_tensor(shape=(-2,)), {"0": NUMBERS}),
    "shape of texts": torch_zip(of_a_tensor(shape=("x",)), {"0": NUMBERS}),
    "shape none": torch_zip(of_a_tensor(shape=None), {"0": NUMBERS}),
    "shape of 2**80": torch_zip(of_a_tensor(shape=(2**80,)), {"0": NUMBERS}),
    "shape of 2**40 and stride 0": torch_zip(
        of_a_tensor(shape=(2**40,), strides=(0,)), {"0": NUMBERS}
    ),
    "shape of 70 axes": torch_zip(of_a_tensor(shape=(1,) * 70, strides=(1,) * 70), {"0": NUMBERS}),
    "strides negative": torch_zip(of_a_tensor(strides=(-1,), offset=1), {"0": NUMBERS}),
    "strides of another length": torch_zip(of_a_tensor(strides=(1, 1)), {"0": NUMBERS}),
    "offset beyond": torch_zip(of_a_tensor(offset=2), {"0": NUMBERS}),
    "offset negative": torch_zip(of_a_tensor(offset=-1), {"0": NUMBERS}),
    "offset of a text": torch_zip(of_a_tensor(offset="x"), {"0": NUMBERS}),
    "unknown storage": torch_zip(
        of_a_tensor(storage=("storage", "QInt8Storage", "0", "cpu", 2)), {"0": NUMBERS}
    ),
    "no storage but a text": torch_zip(
        of_a_tensor(storage=("file", "FloatStorage", "0", "cpu", 2)), {"0": NUMBERS}
    ),
    "storage above its folder": torch_zip(
        of_a_tensor(storage=("storage", "FloatStorage", "../../0", "cpu", 2)), {"0": NUMBERS}
    ),
    "numel a text": torch_zip(
        of_a_tensor(storage=("storage", "FloatStorage", "0", "cpu", "x")), {"0": NUMBERS}
    ),
    "tensor without a storage": torch_zip(
        b"\x80\x02}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n(K\x01K\x00)))tRs."
    ),
    "parameter without a tensor": torch_zip(
        b"\x80\x02}X\x01\x00\x00\x00actorch._utils\n_rebuild_parameter\n(K\x01\x89)tRs."
    ),
    "pickle empty": torch_zip(b""),
    "pickle cut short": torch_zip(of_a_tensor()[:-10], {"0": NUMBERS}),
    "pickle of text": torch_zip(b"hello world, no pickle"),
    "pickle of a number": torch_zip(b"\x80\x02K\x01."),
    "pickle of a list": torch_zip(b"\x80\x02]."),
    "pickle of protocol 9": torch_zip(b"\x80\x09}."),
    "pickle that pops nothing": torch_zip(b"\x80\x020000."),
    "pickle that gets nothing": torch_zip(b"\x80\x02h\x05."),
    "pickle with a huge place": torch_zip(b"\x80\x02Nr\xff\xff\xff\x7f."),
    "pickle with a huge text": torch_zip(b"\x80\x02X\xff\xff\xff\x7fabc."),
    "pickle with a huge frame": torch_zip(b"\x80\x04\x95" + b"\xff" * 7 + b"\x7f}."),
    "pickle with a huge bytearray": torch_zip(b"\x80\x05\x96" + b"\xff" * 7 + b"\x7f}."),
    "pickle with a huge number": torch_zip(b"\x80\x02L" + b"9" * 100_000 + b"L\n."),
    "pickle of a key 200,000 deep": torch_zip(b"\x80\x02})" + b"\x85" * DEEP + b"K\x01s."),
    "pickle of a key of 2**50": torch_zip(pairs_of_pairs(50)),
    "pickle of lists 200,000 deep": torch_zip(b"\x80\x02" + b"]" * DEEP + b"a" * (DEEP - 1) + b"."),
    "pickle of an extension": torch_zip(b"\x80\x02\x82\x01."),
    "pickle that calls os.mkdir": torch_zip(b"\x80\x02cos\nmkdir\nX\x01\x00\x00\x00a\x85R."),
    "pickle with a list as key": torch_zip(b"\x80\x02}]K\x01s."),
    "no data.pkl": lambda path: _plain_zip(path, {"readme": b"hello"}),
    "two data.pkl": lambda path: _plain_zip(path, {"a/data.pkl": b".", "b/data.pkl": b"."}),
    "empty zip": lambda path: _plain_zip(path, {}),
    "TorchScript": torch_zip(of_a_tensor(), {"0": NUMBERS}, more={"constants.pkl": b""}),
    "big-endian": torch_zip(of_a_tensor(), {"0": NUMBERS}, more={"byteorder": b"big"}),
    "byte order unknown": torch_zip(of_a_tensor(), {"0": NUMBERS}, more={"byteorder": bytes(9)}),
    "only the start": partial(changed, GOOD, lambda content: content[:40]),
    "without the directory": partial(changed, GOOD, lambda content: content[:-60]),
    "encrypted": partial(changed, GOOD, lambda content: content.replace(PLAIN, ENCRYPTED)),
    "a flipped bit": partial(
        changed, GOOD, lambda content: content.replace(NUMBERS, b"\1" + NUMBERS[1:], 1)
    ),
}


def _plain_zip(path: Path, members: Mapping[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


# --- other files


def _tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo("storages")
        member.size = 3
        archive.addfile(member, io.BytesIO(b"abc"))


OTHERS: dict[str, Writer] = {
    "absent": lambda path: None,
    "empty": lambda path: path.write_bytes(b""),
    "one byte": lambda path: path.write_bytes(b"P"),
    "nulls": lambda path: path.write_bytes(bytes(10_000)),
    "text": lambda path: path.write_text("not weights\n"),
    "a page of the web": lambda path: path.write_bytes(PAGE),
    "JSON": lambda path: path.write_text('{"error": "not found"}'),
    "a pointer of Git LFS": lambda path: path.write_bytes(POINTER),
    "a pointer of Git LFS, v2": lambda path: path.write_bytes(POINTER.replace(b"v1", b"v2")),
    "a bare pickle": lambda path: path.write_bytes(pickle.dumps({"a": 1}, protocol=2)),
    "a pickle of protocol 0": lambda path: path.write_bytes(pickle.dumps({"a": 1}, protocol=0)),
    "an array": lambda path: path.write_bytes(_saved(np.ones(3))),
    "arrays": lambda path: path.write_bytes(_saved_by_name(np.ones(3))),
    "gzip": lambda path: path.write_bytes(gzip.compress(bytes(1000))),
    "tar": _tar,
    "HDF5": lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100)),
    "GGUF": lambda path: path.write_bytes(b"GGUF" + bytes(100)),
    "a FIFO": lambda path: os.mkfifo(path),
    "a broken link": lambda path: path.symlink_to("nowhere"),
    "a link to itself": lambda path: path.symlink_to(path.name),
}


def _saved_by_name(array: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.savez(content, a=array)
    return content.getvalue()


def _saved(array: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


ODD_WEIGHTS: dict[str, tuple[str, Writer]] = {
    **{f"safetensors: {name}": ("w.safetensors", write) for name, write in SAFETENSORS.items()},
    **{f"torch: {name}": ("w.pth", write) for name, write in TORCH.items()},
    **{f"other: {name}": ("w.pth", write) for name, write in OTHERS.items()},
    **{f"other.safetensors: {name}": ("w.safetensors", OTHERS[name]) for name in OTHERS},
}
"""The name of each file, with its ending, and what writes it."""
