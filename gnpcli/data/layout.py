"""The names in an image folder: splits, classes, files. No image is opened here, and NumPy is not needed.

    DIR/train/<class>/<image>        required
    DIR/test/<class>/<image>         held out
    DIR/val/<class>/<image>          validation where there is a test folder besides, else the held-out split

Class folders are one level deep; sorted by name they are labels 0, 1, ...
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass

from gnpcli.errors import ConfigError, DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
"""What counts as an image, in either case. Other files, and names that begin with a dot, are passed over."""

TREE = "train/<class>/*.png and test/<class>/*.png (or .jpg, .jpeg, .webp, .bmp, .gif)"
"""How messages put the layout."""


@dataclass(frozen=True)
class SplitFiles:
    """The files of a split, sorted by class and within a class by name."""

    paths: tuple[str, ...]
    stamps: tuple[tuple[int, int], ...]
    """Of each file (size in bytes, time of last change in ns)."""
    class_counts: tuple[int, ...]
    """Files of each class of the folder; 0 for a class that this split lacks."""


@dataclass(frozen=True)
class Layout:
    """An image folder's splits under the names of `gnpcli.data.base.Dataset`."""

    root: str
    class_names: tuple[str, ...]
    train: SplitFiles
    validation: SplitFiles | None
    test: SplitFiles | None

    @property
    def splits(self) -> dict[str, SplitFiles]:
        """The splits that are there, `train` first."""
        named = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: split for name, split in named.items() if split is not None}


def scan(root: str, *, validation_fraction: float) -> Layout:
    """Find the splits, classes and images of an image folder, in an order that depends on names only.

    Directory links are followed; nothing is searched below the class folders.

    Args:
        root: The folder that holds ``train``.
        validation_fraction: Share of ``train`` that the caller will set aside: above 0 the folder may do without
            a held-out split, and must not have a validation split of its own.

    Raises:
        ConfigError: On `validation_fraction` with a folder that has its own validation split.
        DataError: On a folder that is not laid out as above, an empty class, a class without training images, fewer
            than two classes, a broken link, or names that may not be read; with the path.
    """
    if not os.path.isdir(root):
        reason = "is not a directory" if os.path.exists(root) else "does not exist"
        raise DataError(f"{root} {reason}: give a folder that holds {TREE}")
    present = {name for name in ("train", "val", "test") if os.path.isdir(os.path.join(root, name))}
    if "train" not in present:
        raise DataError(f"{root} has no train folder: it should hold {TREE}")
    if {"val", "test"} <= present and validation_fraction > 0:
        raise ConfigError(
            f"{root} has both val and test, so val is the validation split: set data.validation_fraction to 0",
            key="data.validation_fraction",
        )
    if present == {"train"} and validation_fraction == 0:
        raise DataError(
            f"{root} has no held-out images: add a test folder, or set data.validation_fraction to hold out a share "
            "of train"
        )
    class_names = _class_names(os.path.join(root, "train"))
    if len(class_names) < 2:
        raise DataError(f"{root}/train holds one class, {class_names[0]!r}: there is nothing to tell apart")
    splits = {name: _scan_split(os.path.join(root, name), class_names) for name in sorted(present)}
    if "test" in splits:
        return Layout(root, class_names, splits["train"], splits.get("val"), splits["test"])
    return Layout(root, class_names, splits["train"], None, splits.get("val"))


def _class_names(split: str) -> tuple[str, ...]:
    try:
        with os.scandir(split) as entries:
            names = sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())
    except OSError as error:
        raise _unreadable(error, split) from error
    if not names:
        raise DataError(f"{split} has no class folders: it should hold one folder of images per class")
    return tuple(names)


def _scan_split(split: str, class_names: Sequence[str]) -> SplitFiles:
    own = _class_names(split)
    if unknown := sorted(set(own) - set(class_names)):
        raise DataError(f"{os.path.join(split, unknown[0])}: the class {unknown[0]!r} has no folder in train")
    classes = [_scan_class(os.path.join(split, name)) if name in own else [] for name in class_names]
    files = [file for found in classes for file in found]
    return SplitFiles(
        paths=tuple(path for path, _, _ in files),
        stamps=tuple((size, mtime_ns) for _, size, mtime_ns in files),
        class_counts=tuple(len(found) for found in classes),
    )


def _scan_class(folder: str) -> list[tuple[str, int, int]]:
    """Return (path, size, mtime in ns) of each image, sorted by path."""
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") or not entry.name.lower().endswith(SUFFIXES):
                    continue
                facts = entry.stat()  # follows links; a broken one is an error, not one image fewer
                if stat.S_ISREG(facts.st_mode):
                    found.append((entry.path, facts.st_size, facts.st_mtime_ns))
    except OSError as error:
        raise _unreadable(error, folder) from error
    if not found:
        raise DataError(f"{folder} holds no images ({', '.join(SUFFIXES)}): add some or delete the folder")
    return sorted(found)


def _unreadable(error: OSError, folder: str) -> DataError:
    path = error.filename or folder
    reason = "is a broken link" if os.path.islink(path) else f"cannot be read: {error.strerror}"
    return DataError(f"{path} {reason}")
