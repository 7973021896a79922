"""Folders that TensorFlow Datasets has prepared, read without TensorFlow, decoded once and cached.

    DATA_DIR/<name>/<version>/dataset_info.json, features.json, label.labels.txt, <name>-<split>.<format>-*-of-*

Finding and counting needs nothing but the names and dataset_info.json. Records are read by ``tensorflow_datasets``,
which is imported only where they are: not for `find` and `examine`, nor for images that are in the cache.
"""

from __future__ import annotations

import json
import logging
import os
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from gnpcli.data.base import Images, Labels
from gnpcli.data.cache import cache_key, read_cache, write_cache
from gnpcli.data.decode import allocate, resize
from gnpcli.errors import DataError

TREE = "<version>/dataset_info.json"
"""How messages put the layout."""

INFO = "dataset_info.json"
FORMATS = ("array_record", "tfrecord")
"""Record formats that can be read."""

_VERSION = re.compile(r"\d+\.\d+\.\d+")
_RECORDS = re.compile(r".+-[^-]+\.[a-z_]+-\d+-of-\d+")
_BLOCK = 1000  # records per read: one at a time takes twice as long


@dataclass(frozen=True)
class Prepared:
    """A prepared folder as its names and dataset_info.json show it."""

    root: str
    """The folder of one version."""
    name: str
    """As TFDS names the data set."""
    format: str
    """One of `FORMATS`."""
    counts: dict[str, int]
    """Images of each split."""
    paths: tuple[str, ...]
    """All files of the folder, sorted."""
    stamps: tuple[tuple[int, int], ...]
    """Of each file (size in bytes, time of last change in ns)."""


def find(place: str) -> str | None:
    """Return the folder of the newest prepared version at `place`; None where nothing there looks like TFDS.

    Args:
        place: The folder of one version, or of a data set: then the newest version that has been prepared counts.

    Raises:
        DataError: If `place` is laid out as by TFDS and holds no version whose preparation was finished.
    """
    try:
        names = sorted(os.listdir(place))
    except OSError:  # absent, a file, or closed to us: nothing found here
        return None
    if INFO in names:
        return place
    versions = [name for name in names if _VERSION.fullmatch(name) and os.path.isdir(os.path.join(place, name))]
    prepared = [name for name in versions if os.path.isfile(os.path.join(place, name, INFO))]
    if prepared:
        return os.path.join(place, max(prepared, key=lambda name: tuple(map(int, name.split(".")))))
    # TFDS prepares in incomplete.XXXXXX_<version> and renames that at the end.
    unfinished = [name for name in names if name.startswith("incomplete.") and _VERSION.search(name)]
    if versions or unfinished or "features.json" in names or any(_RECORDS.fullmatch(name) for name in names):
        where = os.path.join(place, (versions or unfinished or [""])[-1]).rstrip(os.sep)
        raise DataError(f"{where} looks like a TFDS folder but was not prepared to the end: it has no {INFO}")
    return None


def examine(root: str, *, name: str, splits: Sequence[str]) -> Prepared:
    """Read what a prepared folder says of itself; opens no record file.

    Args:
        root: From `find`.
        name: The data set that it has to be, as TFDS names it.
        splits: Splits that have to be there with at least one image.

    Raises:
        DataError: On another data set, a record format that cannot be read, a missing or empty split, or a
            dataset_info.json that is unreadable.
    """
    try:
        with open(os.path.join(root, INFO), encoding="utf-8") as file:
            info = json.load(file)
        own_name = str(info["name"])
        form = str(info.get("fileFormat") or "tfrecord")  # TFDS left the field out while there was one format
        counts = {str(s["name"]): sum(map(int, s.get("shardLengths", ()))) for s in info.get("splits", ())}
        paths, stamps = _files(root)
    except OSError as error:
        raise DataError(f"{error.filename or root} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{os.path.join(root, INFO)} is damaged: prepare the data set anew") from error
    if own_name != name:
        raise DataError(f"{root} holds the TFDS data set {own_name!r}, not {name!r}")
    if form not in FORMATS:
        raise DataError(f"{root} holds {form} records, which cannot be read here: prepare it as array_record")
    if missing := [split for split in splits if counts.get(split, 0) < 1]:
        found = ", ".join(split for split, count in counts.items() if count) or "none"
        raise DataError(f"{root} has no {missing[0]} split (its splits: {found}): prepare the data set anew")
    return Prepared(root, own_name, form, counts, paths, stamps)


def load_arrays(
    prepared: Prepared,
    *,
    splits: Sequence[str],
    class_names: Sequence[str],
    shape: tuple[int, int, int],
    image_size: int | None,
    progress: Callable[[int, int], None] | None,
) -> dict[str, npt.NDArray[Any]]:
    """Read images and labels of some splits from the cache, or decode and cache them.

    The record files' own checksums are verified for array_record; of tfrecord files only the framing, the images and
    the range of the labels are, since the standard library has no CRC-32C.

    Args:
        prepared: The folder.
        splits: Names of its splits.
        class_names: What labels 0, 1, ... must be called in the folder.
        shape: (S, S, C) that every image must have.
        image_size: Side to resize to; None keeps S.
        progress: Called with (done, total) over all splits after every block of records.

    Returns:
        For every split ``<split>``, uint8 ``[N, S, S, C]``, and ``<split>_labels``, int32 ``[N]``, in the order of the
        records.

    Raises:
        DataError: If tensorflow_datasets is not installed, the classes or an image are not as expected, or a record
            file is missing or damaged.
    """
    key = cache_key(prepared.root, {"tfds": prepared}, image_size)
    lengths = {name: prepared.counts[split] for split in splits for name in (split, f"{split}_labels")}
    arrays = read_cache(key, lengths)
    if arrays is None:
        arrays = _decode(prepared, splits, class_names, shape, image_size, progress)
        write_cache(key, arrays)
    return arrays


def read_labels(prepared: Prepared, split: str) -> Labels:
    """Return the labels of a split, int32 ``[N]``, without decoding images.

    Raises:
        DataError: As `load_arrays`, but for the images.
    """
    builder = _builder(prepared)
    blocks = _blocks(builder, prepared, split, images=False)
    labels = np.asarray([example["label"] for block in blocks for example in block], dtype=np.int32)
    _check_labels(prepared, labels, builder.info.features["label"].num_classes)
    return labels


def _files(root: str) -> tuple[tuple[str, ...], tuple[tuple[int, int], ...]]:
    with os.scandir(root) as entries:
        found = sorted((entry.path, entry.stat()) for entry in entries if entry.is_file())
    return tuple(path for path, _ in found), tuple((facts.st_size, facts.st_mtime_ns) for _, facts in found)


def _decode(
    prepared: Prepared,
    splits: Sequence[str],
    class_names: Sequence[str],
    shape: tuple[int, int, int],
    image_size: int | None,
    progress: Callable[[int, int], None] | None,
) -> dict[str, npt.NDArray[Any]]:
    builder = _builder(prepared)
    with _reading(prepared):
        own_names = tuple(builder.info.features["label"].names)
        own_shape = tuple(builder.info.features["image"].shape)
    _check_shape(prepared, shape, [own_shape])
    if own_names != tuple(class_names):
        raise DataError(
            f"{prepared.root} does not name its classes {', '.join(class_names)} in this order: prepare it anew"
        )
    side = image_size or shape[0]
    arrays: dict[str, npt.NDArray[Any]] = {}
    total, done = sum(prepared.counts[split] for split in splits), 0
    for split in splits:
        images = allocate(prepared.counts[split], side, shape[2])
        labels: Labels = np.empty(prepared.counts[split], dtype=np.int32)
        start = 0
        for block in _blocks(builder, prepared, split, images=True):
            _check_shape(prepared, shape, (example["image"].shape for example in block))
            end = start + len(block)
            pixels: Images = np.stack([example["image"] for example in block])
            images[start:end] = pixels if side == shape[0] else resize(pixels, side)
            labels[start:end] = [example["label"] for example in block]
            start, done = end, done + len(block)
            if progress is not None:
                progress(done, total)
        _check_labels(prepared, labels, len(class_names))
        arrays |= {split: images, f"{split}_labels": labels}
    return arrays


def _check_shape(prepared: Prepared, shape: tuple[int, ...], found: Iterable[tuple[int, ...]]) -> None:
    if any(own != shape for own in found):
        raise DataError(f"{prepared.root} holds images that are not {'x'.join(map(str, shape))} pixels")


def _check_labels(prepared: Prepared, labels: Labels, num_classes: int) -> None:
    if labels.min() < 0 or labels.max() >= num_classes:
        raise DataError(f"{prepared.root} has labels outside 0 to {num_classes - 1}: prepare the data set anew")


def _builder(prepared: Prepared) -> Any:
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise DataError(
            f'{prepared.root} is a TFDS folder and reading it needs tensorflow_datasets: pip install "gnp[tfds]"'
        ) from error
    with _reading(prepared):
        return tensorflow_datasets.builder_from_directory(prepared.root)


def _blocks(builder: Any, prepared: Prepared, split: str, *, images: bool) -> Iterator[list[Mapping[str, Any]]]:
    """Yield a split's examples in order, in blocks, as many as dataset_info.json promises.

    Raises:
        DataError: On whatever goes wrong in here; what the caller does with a block is not caught.
    """
    import tensorflow_datasets

    decoders = None if images else {"image": tensorflow_datasets.decode.SkipDecoding()}
    count = prepared.counts[split]
    with _reading(prepared):
        if prepared.format == "array_record":
            source = builder.as_data_source(split, decoders=decoders)
            for start in range(0, count, _BLOCK):
                yield source.__getitems__(range(start, min(start + _BLOCK, count)))
            return
        # tensorflow_datasets reads tfrecord files with TensorFlow only; the framing is simple, the content the same.
        features = builder.info.features
        records = (record for path in builder.info.splits[split].filepaths for record in _tfrecords(os.fspath(path)))
        done = 0
        while block := [features.deserialize_example_np(r, decoders=decoders) for r in islice(records, _BLOCK)]:
            done += len(block)
            if done > count:
                break
            yield block
        if done != count:
            raise ValueError(f"{split} does not have {count} records")


def _tfrecords(path: str) -> Iterator[bytes]:
    """Yield the records of a file: length (8 bytes, little-endian), its CRC (4), the record, its CRC (4)."""
    with open(path, "rb") as file:
        left = os.fstat(file.fileno()).st_size
        while head := file.read(12):
            length = struct.unpack("<Q", head[:8])[0] if len(head) == 12 else left
            left -= 16 + length
            if left < 0:
                raise ValueError(f"{os.path.basename(path)} is cut off")
            yield file.read(length)
            file.seek(4, os.SEEK_CUR)


@contextmanager
def _reading(prepared: Prepared) -> Iterator[None]:
    """Turn what the readers raise, which is nearly anything, into one line that names the folder."""
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.ERROR)  # tfds recommends OpenCV to everyone who has Pillow
    try:
        yield
    except (DataError, MemoryError):
        raise
    except ImportError as error:
        package = (error.name or "array_record").partition(".")[0]
        raise DataError(
            f"{prepared.root} holds {prepared.format} records and reading them needs {package}: pip install {package}"
        ) from error
    except Exception as error:
        # Up to the first detail: what follows are checksums and addresses.
        reason = " ".join(str(error).split()).partition(" (")[0][:200] or type(error).__name__
        raise DataError(f"{prepared.root} is damaged ({reason}): prepare the data set anew") from error
    finally:
        log.setLevel(level)
