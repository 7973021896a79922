"""The names in an image folder: splits, classes, files. No image is opened.

    DIR/train/<class>/<image>   required
    DIR/test/<class>/<image>    the held-out split
    DIR/val/<class>/<image>     validation where there is a test folder, else the held-out split
    DIR/val/<image>             the same; a file gives the classes (`gnpcli.data.images.val_labels`)

Images may lie one folder deeper, in ``<class>/images/`` or ``val/images/``. A test folder without
class folders has no labels and is passed over. Class folders are one level deep. Sorted by name
they are labels 0, 1, ...
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

from gnpcli.data.images.val_labels import read_classes
from gnpcli.errors import ConfigError, DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
"""Suffixes of images, in either case.

Other files, and names that begin with a dot, are passed over.
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
    """Find the splits, classes and images of an image folder.

    Their order depends on names only. Directory links are followed. Nothing is searched below the
    class folders but ``images``.

    Args:
        root: The folder that holds ``train``.
        validation_fraction: Share of ``train`` that the caller will set aside. Above 0 the folder
            may do without a held-out split, and must not have a validation split of its own.
        val_labels: File with the classes of a flat ``val``; None looks for the usual ones.

    Raises:
        ConfigError: On `validation_fraction` with a folder that has its own validation split, or
            `val_labels` with one whose ``val`` is not flat.
        DataError: On a folder that is not laid out as above, an empty class, a class without
            training images, fewer than two classes, a broken link, names that may not be read, or a
            flat ``val`` without the classes of all its images; with the path.
    """
    present = _present_splits(root)
    class_names = _class_names(os.path.join(root, "train"))
    _check_classes(root, class_names)
    flat: dict[str, str] = {}
    for name in present - {"train"}:
        folder = _flat_folder(os.path.join(root, name), class_names)
        if folder is not None:
            flat[name] = folder
    if "test" in flat:
        _check_unlabelled_test(root, present, validation_fraction)
        present.remove("test")
    _check_held_out(root, present, validation_fraction)
    if val_labels is not None and "val" not in flat:
        raise ConfigError(
            f"{root} has no val folder without class folders: leave out data.val_labels",
            "data.val_labels",
        )
    splits: dict[str, SplitFiles] = {}
    for name in sorted(present):
        if name in flat:
            splits[name] = _scan_flat(root, flat[name], class_names, val_labels)
        else:
            splits[name] = _scan_split(os.path.join(root, name), class_names)
    if "test" in splits:
        return Layout(root, class_names, splits["train"], splits.get("val"), splits["test"])
    return Layout(root, class_names, splits["train"], None, splits.get("val"))


def _present_splits(root: str) -> set[str]:
    """Return the splits that have a folder, ``train`` among them."""
    if not os.path.isdir(root):
        reason = "is not a directory" if os.path.exists(root) else "does not exist"
        raise DataError(f"{root} {reason}: give a folder that holds {TREE}")
    present = {name for name in ("train", "val", "test") if os.path.isdir(os.path.join(root, name))}
    if "train" not in present:
        raise DataError(f"{root} has no train folder: it should hold {TREE}")
    return present


def _check_classes(root: str, class_names: Sequence[str]) -> None:
    if not class_names:
        raise DataError(
            f"{root}/train has no class folders: it should hold one folder of images per class"
        )
    if len(class_names) < 2:
        raise DataError(
            f"{root}/train holds one class, {class_names[0]!r}: there is nothing to tell apart"
        )


def _check_unlabelled_test(root: str, present: set[str], validation_fraction: float) -> None:
    """Check that something else is held out where the test images have no classes."""
    if "val" not in present and validation_fraction == 0:
        raise DataError(
            f"{root}/test holds images without classes: sort them into class folders, or set "
            "data.validation_fraction to hold out a share of train"
        )


def _check_held_out(root: str, present: set[str], validation_fraction: float) -> None:
    """Check that images are held out, and that there is no more than one validation split."""
    if validation_fraction > 0 and {"val", "test"} <= present:
        raise ConfigError(
            f"{root} has both val and test, so val is the validation split: set "
            "data.validation_fraction to 0",
            key="data.validation_fraction",
        )
    if validation_fraction == 0 and present == {"train"}:
        raise DataError(
            f"{root} has no held-out images: add a test folder, or set data.validation_fraction to "
            "hold out a share of train"
        )


def _class_names(split: str) -> tuple[str, ...]:
    """Return the names of a split's folders, sorted."""
    names = []
    try:
        with os.scandir(split) as entries:
            for entry in entries:
                if not entry.name.startswith(".") and entry.is_dir():
                    names.append(entry.name)
    except OSError as error:
        raise _unreadable(error, split) from error
    return tuple(sorted(names))


def _flat_folder(split: str, class_names: Sequence[str]) -> str | None:
    """Return the folder of the images of a split without class folders.

    Returns None where the split has class folders, or is empty.
    """
    own = _class_names(split)
    if not own:
        return split if _images(split) else None
    if own == (_IMAGES,) and _IMAGES not in class_names:
        return os.path.join(split, _IMAGES)
    return None


def _scan_split(split: str, class_names: Sequence[str]) -> SplitFiles:
    """Return the images of a split by the class folders they lie in."""
    own = _class_names(split)
    if not own:
        raise DataError(
            f"{split} has no class folders: it should hold one folder of images per class"
        )
    unknown = sorted(set(own) - set(class_names))
    if unknown:
        raise DataError(
            f"{os.path.join(split, unknown[0])}: the class {unknown[0]!r} has no folder in train"
        )
    classes: dict[str, list[str]] = {name: [] for name in class_names}
    for name in own:
        classes[name] = _class_images(os.path.join(split, name))
    return _by_class(classes)


def _scan_flat(
    root: str, folder: str, class_names: Sequence[str], val_labels: str | None
) -> SplitFiles:
    """Return the images of a flat split by the classes that a file gives them."""
    names = _images(folder)
    classes: dict[str, list[str]] = {name: [] for name in class_names}
    own = read_classes(root, folder, names, classes.keys(), val_labels)
    for name, class_name in zip(names, own, strict=True):
        classes[class_name].append(os.path.join(folder, name))
    return _by_class(classes)


def _by_class(classes: Mapping[str, Sequence[str]]) -> SplitFiles:
    paths = tuple(chain.from_iterable(classes.values()))
    return SplitFiles(paths, tuple(len(own) for own in classes.values()))


def _class_images(folder: str) -> list[str]:
    """Return the paths of a class's images, sorted."""
    for place in (folder, os.path.join(folder, _IMAGES)):
        names = _images(place) if os.path.isdir(place) else []
        if names:
            return [os.path.join(place, name) for name in names]
    raise DataError(
        f"{folder} holds no images ({', '.join(SUFFIXES)}): add some or delete the folder"
    )


def _images(folder: str) -> list[str]:
    """Return the names of the images in a folder, sorted.

    Files are not looked at: there may be millions. Links are: a broken one is an error, not one
    image fewer.
    """
    names = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not _is_image(entry.name):
                    continue
                if entry.is_symlink():
                    entry.stat()
                if entry.is_file():
                    names.append(entry.name)
    except OSError as error:
        raise _unreadable(error, folder) from error
    return sorted(names)


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _unreadable(error: OSError, folder: str) -> DataError:
    path = error.filename or folder
    reason = "is a broken link" if os.path.islink(path) else f"cannot be read: {error.strerror}"
    return DataError(f"{path} {reason}")
