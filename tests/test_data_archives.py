"""Archives that are damaged or made to do harm: they end in one line, and unpack nothing else."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
from pathlib import Path

import pytest

from gnpcli.data.archives.prepare import _unpacked
from gnpcli.data.sources import cifar10, fashion_mnist
from gnpcli.errors import OUT_OF_HOST_MEMORY, DataError, explain
from tests.archives import random_images, write_archives

COUNTS = {"train": 20, "test": 10}
PUBLISHED = {"cifar10": cifar10.PUBLISHED, "fashion_mnist": fashion_mnist.PUBLISHED}
CIFAR, IMAGES = "cifar-10-binary.tar.gz", "t10k-images-idx3-ubyte.gz"


def tar(*members: tarfile.TarInfo, cut: int | None = None) -> bytes:
    """Return a .tar.gz of members without content, whatever size they declare."""
    content = b"".join(member.tobuf(tarfile.PAX_FORMAT) for member in members) + bytes(1024)
    return gzip.compress(content[:cut])


def member(
    name: str, *, size: int = 0, kind: bytes = tarfile.REGTYPE, link: str = ""
) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.size, made.type, made.linkname = size, kind, link
    return made


def sparse(size: int) -> bytes:
    """Return an archive whose member is a hole of `size` bytes."""
    hole = tarfile.TarInfo("test_batch.bin")
    hole.pax_headers = {
        "GNU.sparse.major": "0",
        "GNU.sparse.minor": "1",
        "GNU.sparse.name": "test_batch.bin",
        "GNU.sparse.size": str(size),
        "GNU.sparse.map": f"{size},0",
    }
    return tar(hole)


def idx(*sizes: int, body: int = 0, kind: int = 8) -> bytes:
    header = struct.pack(f">HBB{len(sizes)}I", 0, kind, len(sizes), *sizes)
    return gzip.compress(header + bytes(body))


ODD: dict[str, tuple[str, bytes]] = {
    "empty": (CIFAR, b""),
    "gzip of nothing": (CIFAR, gzip.compress(b"")),
    "gzip cut short": (CIFAR, gzip.compress(bytes(10_000))[:20]),
    "gzip with another end": (CIFAR, tar()[:-4] + b"abcd"),
    "tar of nothing": (CIFAR, tar()),
    "tar cut short": (CIFAR, tar(member("test_batch.bin", size=10_000), cut=600)),
    "no tar": (CIFAR, gzip.compress(b"hello" * 1000)),
    "member of 1 TB": (CIFAR, tar(member("test_batch.bin", size=10**12))),
    "member of a hole of 1 TB": (CIFAR, sparse(10**12)),
    "member of half a record": (CIFAR, tar(member("test_batch.bin", size=100))),
    "member a folder": (CIFAR, tar(member("test_batch.bin", kind=tarfile.DIRTYPE))),
    "member a device": (CIFAR, tar(member("test_batch.bin", kind=tarfile.CHRTYPE))),
    "member a FIFO": (CIFAR, tar(member("test_batch.bin", kind=tarfile.FIFOTYPE))),
    "member a link away": (
        CIFAR,
        tar(member("test_batch.bin", kind=tarfile.SYMTYPE, link="/etc/passwd")),
    ),
    "member a link to itself": (
        CIFAR,
        tar(member("test_batch.bin", kind=tarfile.LNKTYPE, link="test_batch.bin")),
    ),
    "IDX inflates to 64 MB": (IMAGES, gzip.compress(bytes(1 << 26))),
    "IDX of other sizes": (IMAGES, idx(10, 28, 29, body=10 * 28 * 29)),
    "IDX shorter than it says": (IMAGES, idx(10, 28, 28, body=100)),
    "IDX longer than it says": (IMAGES, idx(10, 28, 28, body=10_000)),
    "IDX of 2**96": (IMAGES, idx(2**32 - 1, 2**32 - 1, 2**32 - 1, body=100)),
    "IDX of floats": (IMAGES, idx(10, 28, 28, body=10 * 28 * 28, kind=13)),
    "IDX of rank 255": (IMAGES, gzip.compress(b"\0\0\x08\xff" + bytes(100))),
    "IDX of rank 0": (IMAGES, idx(body=1)),
    "IDX header alone": (IMAGES, gzip.compress(b"\0\0\x08")),
}
"""By name: which file, and its content."""


def unpack(dataset: str, folder: Path) -> list[dict[str, object]]:
    published = PUBLISHED[dataset]
    paths = {path.name: str(path) for path in folder.iterdir()}
    return list(_unpacked(published, "test", paths))


@pytest.mark.parametrize("name", ODD)
def test_an_odd_archive_is_one_line(name: str, tmp_path: Path):
    filename, content = ODD[name]
    dataset = "cifar10" if filename == CIFAR else "fashion_mnist"
    folder = tmp_path / "downloads"
    write_archives(dataset, random_images(dataset, COUNTS), folder)
    assert len(unpack(dataset, folder)) == COUNTS["test"]
    (folder / filename).write_bytes(content)
    with pytest.raises(DataError, match="cannot be unpacked") as caught:
        unpack(dataset, folder)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["downloads"]


def test_names_that_lead_elsewhere_write_nothing(tmp_path: Path):
    """A member counts by its last name, and is read, never unpacked to a file."""
    folder = tmp_path / "downloads"
    write_archives("cifar10", random_images("cifar10", COUNTS), folder)
    with tarfile.open(folder / CIFAR) as archive:
        file = archive.extractfile("cifar-10-batches-bin/test_batch.bin")
        assert file is not None
        content = file.read()
    for place in ("../../../test_batch.bin", "/test_batch.bin"):
        with tarfile.open(folder / CIFAR, "w:gz") as archive:
            archive.addfile(member(place, size=len(content)), io.BytesIO(content))
        assert len(unpack("cifar10", folder)) == COUNTS["test"]
    assert not (tmp_path.parent / "test_batch.bin").exists()


def test_memory_that_runs_out_is_one_line():
    assert explain(MemoryError("Unable to allocate 9. TiB")) == (OUT_OF_HOST_MEMORY, 1)
