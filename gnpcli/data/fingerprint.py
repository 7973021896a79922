"""What tells whether a data set is still the same: counts, and a digest of each class.

A fingerprint is that of what a run computes with. Of images in memory it covers every pixel, every
label and the order of both, and not the files that they came from: the same pixels in another file
format, folder or cache are the same data. Of streamed images, which are too many to be read
beforehand, it covers the names, the sizes and the order of the files, and the first bytes of the
first file of each class.

It does not depend on where the data lie, on the machine, on batches, or on a validation split
that is set aside. NumPy only.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from gnpcli.errors import DataError

_DIGEST_CHARACTERS = 16
"""Of the digest of a class. 64 bits tell chance changes apart; nobody is to be kept out."""
_CHUNK_BYTES = 1 << 24
"""Bytes of pixels that are gathered at a time."""
_SAMPLE_BYTES = 1 << 16
"""Bytes that are read of the first file of each class of a streamed split."""
_READERS = 16
"""Threads that look at files. They wait for the file system, which may be far away."""


@dataclass(frozen=True, kw_only=True)
class SplitFingerprint:
    """What tells whether the images and labels of a split are still the same."""

    of: Literal["pixels", "files"]
    """What the digests are of. Streamed images have ``files``."""
    counts: tuple[int, ...]
    """Images of each class."""
    digests: tuple[str, ...]
    """Of the images of each class, in their order. Its label and its name play no part."""
    order: str
    """Digest of the labels, in the order of the images."""


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """What tells whether the images and labels of a data set are still the same.

    Its splits are those before a validation split is set aside.
    """

    train: SplitFingerprint
    validation: SplitFingerprint | None
    test: SplitFingerprint | None

    @property
    def splits(self) -> dict[str, SplitFingerprint]:
        """The splits that are there, by name."""
        named = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: split for name, split in named.items() if split is not None}

    def covers(self, num_classes: int) -> bool:
        """Return whether it tells of every class in every split."""
        return all(
            len(split.counts) == len(split.digests) == num_classes for split in self.splits.values()
        )


def fingerprint_pixels(
    images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int32], num_classes: int
) -> SplitFingerprint:
    """Return the fingerprint of images in memory.

    Args:
        images: uint8 ``[N, H, W, C]``.
        labels: int32 ``[N]``, 0 to `num_classes` - 1.
        num_classes: Number of labels.
    """
    step = max(1, _CHUNK_BYTES // max(1, images[:1].nbytes))
    digests = []
    for members in _members(labels, num_classes):
        digest = hashlib.sha256()
        for start in range(0, len(members), step):
            digest.update(np.ascontiguousarray(images[members[start : start + step]]).data)
        digests.append(_short(digest))
    return SplitFingerprint(
        of="pixels",
        counts=_counts(labels, num_classes),
        digests=tuple(digests),
        order=_order(labels),
    )


def fingerprint_files(
    paths: Sequence[str], labels: npt.NDArray[np.int32], num_classes: int
) -> SplitFingerprint:
    """Return the fingerprint of image files that are streamed.

    Every file is looked at, and the start of one file of each class is read.

    Args:
        paths: One a file. Their folders play no part.
        labels: int32 ``[N]``, 0 to `num_classes` - 1.
        num_classes: Number of labels.

    Raises:
        DataError: On a file that has gone, or may not be read.
    """
    classes = [[paths[index] for index in own] for own in _members(labels, num_classes)]
    try:
        with ThreadPoolExecutor(_READERS) as pool:
            digests = tuple(pool.map(_digest_files, classes))
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}") from error
    return SplitFingerprint(
        of="files",
        counts=_counts(labels, num_classes),
        digests=digests,
        order=_order(labels),
    )


def _members(
    labels: npt.NDArray[np.int32], num_classes: int
) -> Iterator[npt.NDArray[np.integer[Any]]]:
    """Yield the places of the images of each class, rising."""
    by_class = np.argsort(labels, kind="stable")
    ends = np.cumsum(np.bincount(labels, minlength=num_classes))
    yield from np.split(by_class, ends[:-1])


def _counts(labels: npt.NDArray[np.int32], num_classes: int) -> tuple[int, ...]:
    return tuple(np.bincount(labels, minlength=num_classes).tolist())


def _order(labels: npt.NDArray[np.int32]) -> str:
    return _short(hashlib.sha256(np.ascontiguousarray(labels, dtype="<i4").data))


def _digest_files(paths: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        name = os.fsencode(os.path.basename(path))
        digest.update(name + f"\0{os.stat(path).st_size}\0".encode())
    if paths:
        with open(paths[0], "rb") as file:
            digest.update(file.read(_SAMPLE_BYTES))
    return _short(digest)


def _short(digest: Any) -> str:
    text: str = digest.hexdigest()
    return text[:_DIGEST_CHARACTERS]
