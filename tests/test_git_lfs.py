"""Pointers of Git LFS in place of files: each kind of file says ``git lfs pull``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from gnpcli.config.loader import read_yaml
from gnpcli.config.schema import DataConfig
from gnpcli.data.archives import tfds
from gnpcli.data.archives.fetch import Archive, Origin, fetch
from gnpcli.data.archives.records import read_labels
from gnpcli.data.registry import load_dataset
from gnpcli.errors import GnpError
from gnpcli.git_lfs import pointer_advice
from gnpcli.runs.reading import RunReadError, check_readable, read_bytes
from gnpcli.weights.files import read_tensors
from tests.folders import put
from tests.odd_weights import POINTER


def image(folder: Path) -> Path:
    for label in "ab":
        for split in ("train", "test"):
            path = put(folder / "images" / split / label / "x.png")
    path.write_bytes(POINTER)
    return path


def read_images(path: Path) -> None:
    load_dataset(DataConfig(name=f"folder:{path.parents[2]}"))


def prepared(folder: Path) -> Path:
    (folder / "1.0.0").mkdir()
    return folder / "1.0.0" / "dataset_info.json"


def records(folder: Path) -> Path:
    return prepared(folder).with_name("birds-train.tfrecord-00000-of-00001")


def read_records(path: Path) -> None:
    info = tfds.Prepared(
        root=str(path.parent),
        name="birds",
        format="tfrecord",
        counts={"train": 1},
        shards={"train": (str(path),)},
        paths=(str(path),),
        num_bytes=len(POINTER),
    )
    read_labels(info, tfds.Features(("a", "b"), (8, 8, 3)), ["train"])


def read_archive(path: Path) -> None:
    archive = Archive(f"http://127.0.0.1:9/{path.name}", 10, "0" * 64)
    fetch("birds", [archive], str(path.parent), Origin(), None)


KINDS: dict[str, tuple[Callable[[Path], Path], Callable[[Path], object]]] = {
    "image": (image, read_images),
    "weights": (lambda folder: folder / "w.pth", read_tensors),
    "archive": (lambda folder: folder / "a.tar.gz", read_archive),
    "TFDS folder": (prepared, lambda path: tfds.examine(str(path.parent), name="birds")),
    "records": (records, read_records),
    "preset": (lambda folder: folder / "p.yaml", read_yaml),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_pointer_says_what_to_run(kind: str, tmp_path: Path):
    make, read = KINDS[kind]
    path = make(tmp_path)
    path.write_bytes(POINTER)
    with pytest.raises(GnpError) as caught:
        read(path)
    assert str(caught.value) == pointer_advice(path)
    assert f"{path} is a pointer of Git LFS" in str(caught.value)
    assert "`git lfs pull`" in str(caught.value)


def test_other_files_are_no_pointers(tmp_path: Path):
    assert pointer_advice(tmp_path / "absent") is None
    assert pointer_advice(tmp_path) is None
    for content in (b"", POINTER[:20], b"x" + POINTER, bytes(200)):
        (tmp_path / "file").write_bytes(content)
        assert pointer_advice(tmp_path / "file") is None


def test_a_pointer_in_a_run_folder_is_no_damage(tmp_path: Path):
    """Damage would be set aside; the file can be had again."""
    path = tmp_path / "manifest"
    path.write_bytes(POINTER)
    with pytest.raises(RunReadError, match=r"manifest: it is a pointer of Git LFS.*`git lfs pull`"):
        read_bytes(path)
    with pytest.raises(RunReadError, match=r"manifest: it is a pointer of Git LFS.*nothing was"):
        check_readable(tmp_path)
