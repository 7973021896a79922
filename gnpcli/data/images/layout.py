"""The names in an image folder: splits, classes, files. No image is opened here, and NumPy is not
needed.

    DIR/train/<class>/<image>        required DIR/test/<class>/<image>         held out
    DIR/val/<class>/<image>          validation where there is a test folder besides, else the
    held-out split DIR/val/<image>                  the same, with a file that gives the classes
    (`gnpcli.data.images.val_labels`)

Images may lie one folder deeper, in ``<class>/images/`` or ``val/images/``. A test folder without
class folders has no labels and is passed over. Class folders are one level deep; sorted by name
they are labels 0, 1, ...
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from gnpcli.data.images.val_labels import read_classes
from gnpcli.errors import ConfigError, DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
"""What counts as an image, in either case. Other files, and names that begin with a dot, are passed
over.
"""

TREE = "train/<class>/*.png and test/<class>/*.png (or .jpg, .jpeg, .webp, .bmp, .gif)"
"""How messages put the layout."""

_IMAGES = "images"
"""Folder that may stand between a class, or a flat split, and its images."""


@dataclass(frozen=True)
class SplitFiles:
    """The files of a split, sorted by class and within a class by name."""

    paths: tuple[str, ...]
    class_counts: tuple[int, ...]
    """Files of each class of the folder; 0 for a class that this split lacks."""

    @cached_property
    def stamps(self) -> tuple[tuple[int, int], ...]:
        """Of each file (size in bytes, time of last change in ns).

        Raises:
            DataError: On a file that has gone since, or may not be looked at.
        """
        try:
            facts = [os.stat(path) for path in self.paths]
        except OSError as error:
            raise _unreadable(error, str(error.filename)) from error
        return tuple((fact.st_size, fact.st_mtime_ns) for fact in facts)


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


def scan(root: str, *, validation_fraction: float, val_labels: str | None = None) -> Layout:
    """Find the splits, classes and images of an image folder, in an order that depends on names
    only.

    Directory links are followed; nothing is searched below the class folders but ``images``.

    Args:
        root: The folder that holds ``train``.
        validation_fraction: Share of ``train`` that the caller will set aside: above 0 the folder
            may do without a held-out split, and must not have a validation split of its own.
        val_labels: File with the classes of a flat ``val``; None looks for the usual ones.

    Raises:
        ConfigError: On `validation_fraction` with a folder that has its own validation split, or
            `val_labels` with one whose ``val`` is not flat.
        DataError: On a folder that is not laid out as above, an empty class, a class without
            training images, fewer than two classes, a broken link, names that may not be read, or a
            flat ``val`` without the classes of all its images; with the path.
    """
    if not os.path.isdir(root):
        reason = "is not a directory" if os.path.exists(root) else "does not exist"
        raise DataError(f"{root} {reason}: give a folder that holds {TREE}")
    present = {name for name in ("train", "val", "test") if os.path.isdir(os.path.join(root, name))}
    if "train" not in present:
        raise DataError(f"{root} has no train folder: it should hold {TREE}")
    class_names = _class_names(os.path.join(root, "train"))
    if not class_names:
        raise DataError(
            f"{root}/train has no class folders: it should hold one folder of images per class"
        )
    if len(class_names) < 2:
        raise DataError(
            f"{root}/train holds one class, {class_names[0]!r}: there is nothing to tell apart"
        )
    flat = {
        name: found
        for name in present - {"train"}
        if (found := _flat_folder(os.path.join(root, name), class_names)) is not None
    }
    if "test" in flat and "val" not in present and validation_fraction == 0:
        raise DataError(
            f"{root}/test holds images without classes: sort them into class folders, or set "
            "data.validation_fraction "
            "to hold out a share of train"
        )
    present -= flat.keys() & {"test"}
    if {"val", "test"} <= present and validation_fraction > 0:
        raise ConfigError(
            f"{root} has both val and test, so val is the validation split: set "
            "data.validation_fraction to 0",
            key="data.validation_fraction",
        )
    if present == {"train"} and validation_fraction == 0:
        raise DataError(
            f"{root} has no held-out images: add a test folder, or set data.validation_fraction to "
            "hold out a share "
            "of train"
        )
    if val_labels is not None and "val" not in flat:
        raise ConfigError(
            f"{root} has no val folder without class folders: leave out data.val_labels",
            "data.val_labels",
        )
    splits = {
        name: _scan_flat(root, flat[name], class_names, val_labels)
        if name in flat
        else _scan_split(os.path.join(root, name), class_names)
        for name in sorted(present)
    }
    if "test" in splits:
        return Layout(root, class_names, splits["train"], splits.get("val"), splits["test"])
    return Layout(root, class_names, splits["train"], None, splits.get("val"))


def _class_names(split: str) -> tuple[str, ...]:
    try:
        with os.scandir(split) as entries:
            return tuple(
                sorted(
                    entry.name
                    for entry in entries
                    if not entry.name.startswith(".") and entry.is_dir()
                )
            )
    except OSError as error:
        raise _unreadable(error, split) from error


def _flat_folder(split: str, class_names: Sequence[str]) -> str | None:
    """Return the folder of the images of a split without class folders; None if it has them, or is
    empty.
    """
    own = _class_names(split)
    if not own:
        return split if _images(split) else None
    return (
        os.path.join(split, _IMAGES) if own == (_IMAGES,) and _IMAGES not in class_names else None
    )


def _scan_split(split: str, class_names: Sequence[str]) -> SplitFiles:
    own = _class_names(split)
    if not own:
        raise DataError(
            f"{split} has no class folders: it should hold one folder of images per class"
        )
    if unknown := sorted(set(own) - set(class_names)):
        raise DataError(
            f"{os.path.join(split, unknown[0])}: the class {unknown[0]!r} has no folder in train"
        )
    return _by_class(
        [_class_images(os.path.join(split, name)) if name in own else [] for name in class_names]
    )


def _scan_flat(
    root: str, folder: str, class_names: Sequence[str], val_labels: str | None
) -> SplitFiles:
    """Sort the images of a flat split by the classes that a file gives them."""
    names = _images(folder)
    classes: dict[str, list[str]] = {name: [] for name in class_names}
    for name, own in zip(
        names, read_classes(root, folder, names, classes.keys(), val_labels), strict=True
    ):
        classes[own].append(os.path.join(folder, name))
    return _by_class(list(classes.values()))


def _by_class(classes: Sequence[Sequence[str]]) -> SplitFiles:
    return SplitFiles(tuple(path for paths in classes for path in paths), tuple(map(len, classes)))


def _class_images(folder: str) -> list[str]:
    """Return the paths of a class's images, sorted."""
    for place in (folder, os.path.join(folder, _IMAGES)):
        if os.path.isdir(place) and (names := _images(place)):
            return [os.path.join(place, name) for name in names]
    raise DataError(
        f"{folder} holds no images ({', '.join(SUFFIXES)}): add some or delete the folder"
    )


def _images(folder: str) -> list[str]:
    """Return the names of the images in a folder, sorted. Files are not looked at: there may be
    millions.
    """
    try:
        with os.scandir(folder) as entries:
            found = [
                entry
                for entry in entries
                if entry.name.lower().endswith(SUFFIXES) and entry.name[0] != "."
            ]
            for entry in found:
                if entry.is_symlink():
                    entry.stat()  # a broken link is an error, not one image fewer
            return sorted(entry.name for entry in found if entry.is_file())
    except OSError as error:
        raise _unreadable(error, folder) from error


def _unreadable(error: OSError, folder: str) -> DataError:
    path = error.filename or folder
    reason = "is a broken link" if os.path.islink(path) else f"cannot be read: {error.strerror}"
    return DataError(f"{path} {reason}")
