"""``cifar10``: CIFAR-10, 50,000 training and 10,000 test photographs, 32x32, RGB, in 10 classes.

A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009. The classes sorted by
name are the official labels. Images are normalised by the published channel statistics. All 50,000
training images re-encoded as JPEG give 0.4913 0.4821 0.4465 and 0.2452 0.2428 0.2606: a little less
deviation, for the detail that JPEG drops.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from gnpcli.data.archives.facts import Example
from gnpcli.data.archives.fetch import Archive
from gnpcli.data.archives.published import PublishedDataset

CLASS_NAMES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
ARCHIVE = Archive(
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    170_052_171,
    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
)
FILES = {
    "train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    "test": ("test_batch.bin",),
}

_MOST_BYTES = 50_000 * (2 + 3 * 32 * 32)
"""The largest file of CIFAR-10 and CIFAR-100."""


def read_binary(
    path: str, names: Sequence[str], labels: Sequence[str], split: str, num_classes: int
) -> Iterator[Example]:
    """Yield the examples of CIFAR's binary files.

    A file is a sequence of records: one byte for each label, then the 32x32 red, green and blue
    values, row by row.

    Args:
        path: The ``.tar.gz``.
        names: Files in it, in order, whatever their folder.
        labels: What the labels of a record are called.
        split: Part of the examples' ``id``.
        num_classes: Of the last label.

    Raises:
        ValueError: If a file is missing, ends within a record, or has labels that are out of range.
    """
    contents = _read_members(path, names)
    index = 0
    for name in names:
        for record in _records(name, contents[name], len(labels), num_classes):
            numbers = dict(zip(labels, record[: len(labels)].tolist(), strict=True))
            pixels = record[len(labels) :].reshape(3, 32, 32).transpose(1, 2, 0)
            example_id = f"{split}_{index:05d}"
            yield {"image": np.ascontiguousarray(pixels), "id": example_id, **numbers}
            index += 1


def _read_members(path: str, names: Sequence[str]) -> dict[str, bytes]:
    """Return the content of files in an archive by name, whatever their folder."""
    found: dict[str, bytes] = {}
    with tarfile.open(path, "r:gz") as archive:
        while len(found) < len(names):
            member = archive.next()
            if member is None:
                break
            name = os.path.basename(member.name)
            file = archive.extractfile(member) if name in names else None
            if file is not None:
                if member.size > _MOST_BYTES:
                    raise ValueError(f"{name} is larger than the published images")
                found[name] = file.read()
    for name in names:
        if name not in found:
            raise ValueError(f"{name} is missing")
    return found


def _records(name: str, content: bytes, num_labels: int, num_classes: int) -> npt.NDArray[np.uint8]:
    """Return the records of a file, uint8 ``[N, num_labels + 3072]``."""
    length = num_labels + 3 * 32 * 32
    if len(content) % length:
        raise ValueError(f"{name} is cut off")
    records = np.frombuffer(content, np.uint8).reshape(-1, length)
    if records[:, num_labels - 1].max(initial=0) >= num_classes:
        raise ValueError(f"{name} has labels beyond {num_classes - 1}")
    return records


def _examples(split: str, paths: Mapping[str, str]) -> Iterator[Example]:
    return read_binary(paths[ARCHIVE.filename], FILES[split], ["label"], split, len(CLASS_NAMES))


PUBLISHED = PublishedDataset(
    name="cifar10",
    title="CIFAR-10",
    class_names=CLASS_NAMES,
    image_size=32,
    channels=3,
    class_counts={"train": (5_000,) * 10, "test": (1_000,) * 10},
    archives={"train": (ARCHIVE,), "test": (ARCHIVE,)},
    examples=_examples,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
)
describe, load = PUBLISHED.describe, PUBLISHED.load
