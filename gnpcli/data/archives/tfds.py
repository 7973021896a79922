"""What a folder that TensorFlow Datasets has prepared says of itself.

    DATA_DIR/<name>[/<config>]/<version>/
        dataset_info.json, features.json, label.labels.txt, <name>-<split>.<format>-*

Only the standard library is needed here, and no record file is opened.
`gnpcli.data.archives.records` reads the images.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gnpcli.errors import DataError
from gnpcli.git_lfs import pointer_advice

TREE = "<version>/dataset_info.json"
"""How messages put the layout."""

INFO = "dataset_info.json"
FEATURES = "features.json"
FORMATS = ("array_record", "tfrecord")
"""Record formats that can be read."""

_VERSION = re.compile(r"\d+\.\d+\.\d+")
_RECORDS = re.compile(r".+-[^-]+\.[a-z_]+-\d+-of-\d+")
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"


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
    shards: dict[str, tuple[str, ...]]
    """Record files of each split, in order."""
    paths: tuple[str, ...]
    """All files of the folder, sorted."""
    num_bytes: int
    """What they take on disk."""

    def holds(self, splits: Sequence[str]) -> bool:
        """Return whether each of `splits` has at least one image."""
        return all(self.counts.get(split, 0) > 0 for split in splits)


@dataclass(frozen=True)
class Features:
    """What the examples of an image classification set hold."""

    class_names: tuple[str, ...]
    """Of label 0, 1, ...; their numbers where TFDS knows no names."""
    shape: tuple[int | None, int | None, int]
    """Height, width and channels of the images; None where they differ."""


def find(place: str) -> str | None:
    """Return the folder of the newest prepared version at `place`.

    Returns None where nothing there looks like TFDS. What an interrupted preparation leaves,
    ``incomplete.*``, counts as nothing.

    Args:
        place: The folder of one version, or of a data set: then the newest version that has been
            prepared counts.

    Raises:
        DataError: If `place` is laid out as by TFDS and holds no version whose preparation was
            finished.
    """
    try:
        names = sorted(os.listdir(place))
    except OSError:  # absent, a file, or closed to us: nothing found here
        return None
    if INFO in names:
        return place
    versions = []
    for name in names:
        if _VERSION.fullmatch(name) and os.path.isdir(os.path.join(place, name)):
            versions.append(name)
    prepared = [name for name in versions if os.path.isfile(os.path.join(place, name, INFO))]
    if prepared:
        return os.path.join(place, max(prepared, key=_version))
    if versions or FEATURES in names or any(_RECORDS.fullmatch(name) for name in names):
        where = os.path.join(place, *versions[-1:])
        raise DataError(
            f"{where} looks like a TFDS folder but was not prepared to the end: it has no {INFO}; "
            "delete or complete it"
        )
    return None


def _version(name: str) -> tuple[int, ...]:
    return tuple(int(part) for part in name.split("."))


def examine(root: str, *, name: str, splits: Sequence[str] = ()) -> Prepared:
    """Read what a prepared folder says of itself; opens no record file.

    Args:
        root: From `find`.
        name: The data set that it has to be, as TFDS names it.
        splits: Splits that have to be there with at least one image.

    Raises:
        DataError: On another data set, a record format that cannot be read, a missing or empty
            split, or a dataset_info.json that is unreadable.
    """
    path = os.path.join(root, INFO)
    info = _read_json(path)
    try:
        prepared = _parse(root, info)
    except OSError as error:
        raise DataError(f"{error.filename or root} cannot be read: {error.strerror}") from error
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise DataError(f"{path} is damaged: prepare the data set anew") from error
    if prepared.name != name:
        raise DataError(f"{root} holds the TFDS data set {prepared.name!r}, not {name!r}")
    if prepared.format not in FORMATS:
        raise DataError(
            f"{root} holds {prepared.format} records, which cannot be read here: prepare it as "
            "array_record"
        )
    check_splits(prepared, splits)
    return prepared


def _parse(root: str, info: Mapping[str, Any]) -> Prepared:
    """Return what dataset_info.json and the names of the files say.

    Raises what unexpected JSON brings up, and OSError.
    """
    name = str(info["name"])
    # TFDS left the field out while there was one format.
    record_format = str(info.get("fileFormat") or "tfrecord")
    counts: dict[str, int] = {}
    shards: dict[str, tuple[str, ...]] = {}
    for split in info.get("splits", ()):
        split_name = str(split["name"])
        lengths = [int(length) for length in split.get("shardLengths", ())]
        template = str(split.get("filepathTemplate") or _TEMPLATE)
        fields = {"DATASET": name, "SPLIT": split_name, "FILEFORMAT": record_format}
        filenames = _shard_filenames(template, fields, len(lengths))
        counts[split_name] = sum(lengths)
        shards[split_name] = tuple(os.path.join(root, filename) for filename in filenames)
    paths, num_bytes = _files(root)
    return Prepared(root, name, record_format, counts, shards, paths, num_bytes)


def check_splits(prepared: Prepared, splits: Sequence[str]) -> None:
    """Check that all of `splits` are there with at least one image.

    Raises:
        DataError: With the first that is not, and those that are.
    """
    missing = [split for split in splits if prepared.counts.get(split, 0) < 1]
    if missing:
        found = ", ".join(split for split, count in prepared.counts.items() if count) or "none"
        raise DataError(
            f"{prepared.root} has no {missing[0]} split (its splits: {found}): prepare the data "
            "set anew"
        )


def read_features(prepared: Prepared) -> Features:
    """Read what the examples hold: an image of 8 bits a channel and the number of a class.

    Raises:
        DataError: If they hold something else, with what it is, or if the folder does not say.
    """
    content = _read_json(os.path.join(prepared.root, FEATURES))
    damaged = DataError(f"{prepared.root} is damaged ({FEATURES}): prepare the data set anew")
    try:
        features: Mapping[str, Any] = content.get("featuresDict", {})["features"]
        image = features.get("image", {}).get("image")
        label = features.get("label", {}).get("classLabel")
    except (KeyError, TypeError, AttributeError) as error:
        raise damaged from error
    if image is None or label is None:
        raise DataError(
            f"{prepared.root} is no image classification set: its features are "
            f"{', '.join(sorted(features))}, and an image called image and a class called label "
            "are needed"
        )
    try:
        height, width, channels = (int(side) for side in image["shape"]["dimensions"])
        num_classes = int(label["numClasses"])
        dtype = str(image.get("dtype") or "uint8")
        names = _label_names(prepared.root) or [str(index) for index in range(num_classes)]
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise damaged from error
    if dtype != "uint8" or channels not in (1, 3, 4):
        raise DataError(
            f"{prepared.root} holds images of {channels} channels of type {dtype}; 1 or 3 of uint8 "
            "are read"
        )
    if len(names) != num_classes:
        raise damaged
    return Features(
        class_names=tuple(names),
        shape=(_known_side(height), _known_side(width), min(channels, 3)),
    )


def _known_side(side: int) -> int | None:
    """Return a side of the images; TFDS writes -1 where they differ."""
    return side if side > 0 else None


def _read_json(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
        if not isinstance(content, dict):
            raise ValueError("not an object")
        return content
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        damaged = f"{path} is damaged: prepare the data set anew"
        raise DataError(pointer_advice(path) or damaged) from error


def _label_names(root: str) -> list[str]:
    try:
        with open(os.path.join(root, "label.labels.txt"), encoding="utf-8") as file:
            return [line.strip() for line in file if line.strip()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{root}/label.labels.txt is damaged ({error})") from error


def _shard_filenames(template: str, fields: Mapping[str, str], count: int) -> list[str]:
    """Return the file names of a split's shards, in order."""
    filenames = []
    for index in range(count):
        filename = template.format(
            **fields,
            SHARD_INDEX=f"{index:05d}",
            NUM_SHARDS=f"{count:05d}",
            SHARD_X_OF_Y=f"{index:05d}-of-{count:05d}",
        )
        filenames.append(filename)
    return filenames


def _files(root: str) -> tuple[tuple[str, ...], int]:
    """Return the paths of a folder's files, sorted, and the bytes that they take."""
    with os.scandir(root) as entries:
        found = [(entry.path, entry.stat().st_size) for entry in entries if entry.is_file()]
    return tuple(sorted(path for path, _ in found)), sum(size for _, size in found)
