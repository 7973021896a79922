"""The names in an image folder: splits, classes, files. No image is opened.

    DIR/train/<class>/<image>   required
    DIR/test/<class>/<image>    the held-out split
    DIR/val/<class>/<image>     validation where there is a test folder, else the held-out split
    DIR/val/<image>             the same; a file gives the classes (`gnpcli.data.images.val_labels`)

`gnpcli.data.images.splits` has the other names of these three folders. Images may lie one folder
deeper, in ``<class>/images/`` or ``val/images/``. A test folder without class folders has no labels
and is passed over. Class folders are one level deep. Sorted by name they are labels 0, 1, ...
`gnpcli.data.images.entries` says what counts as an image.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from gnpcli.config.paths import is_usable
from gnpcli.data.images.entries import (
    SUFFIXES,
    FolderReader,
    Passed,
    Reason,
    passed_over,
)
from gnpcli.data.images.splits import SPLITS, split_folders, without_train
from gnpcli.data.images.val_labels import read_classes
from gnpcli.errors import ConfigError, DataError, suggest
from gnpcli.terminal.words import few

_IMAGES = "images"
"""Folder that may stand between a class, or a flat split, and its images."""


@dataclass(frozen=True)
class SplitFiles:
    """The files of a split, sorted by class and within a class by name."""

    paths: tuple[str, ...]
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
    passed: tuple[Passed, ...] = ()
    """What lies in the folder and is not read."""

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
        DataError: On a folder that is not laid out as above, two folders of one split, an empty
            class, a class without training images, fewer than two classes, an image or a split that
            is a broken link, a class whose name is no UTF-8, names that may not be read, or a flat
            ``val`` without the classes of all its images; with the path.
    """
    reader = FolderReader()
    folders = split_folders(reader, root)
    if "train" not in folders:
        raise DataError(without_train(reader, root, folders))
    class_names = _class_names(reader, folders["train"])
    _check_classes(folders["train"], class_names)
    flat: dict[str, str] = {}
    for name in folders.keys() - {"train"}:
        folder = _flat_folder(reader, folders[name], class_names)
        if folder is not None:
            flat[name] = folder
    if "test" in flat:
        _check_unlabelled_test(folders, validation_fraction)
        reader.pass_over(root, [os.path.basename(folders.pop("test"))], Reason.UNLABELLED)
    _check_held_out(root, folders, validation_fraction)
    if val_labels is not None and "val" not in flat:
        raise ConfigError(
            f"{root} has no val folder without class folders: leave out data.val_labels",
            "data.val_labels",
        )
    splits: dict[str, SplitFiles] = {}
    for name, folder in folders.items():
        if name in flat:
            splits[name] = _scan_flat(reader, root, flat[name], class_names, val_labels)
        else:
            splits[name] = _scan_split(reader, folder, class_names)
    train, val, test = (splits.get(name) for name in SPLITS)
    assert train is not None
    if test is None:
        val, test = None, val
    return Layout(root, class_names, train, val, test, reader.passed)


def _check_classes(train: str, class_names: Sequence[str]) -> None:
    if not class_names:
        raise DataError(
            f"{train} has no class folders: it should hold one folder of images per class"
        )
    if len(class_names) < 2:
        raise DataError(
            f"{train} holds one class, {class_names[0]!r}: there is nothing to tell apart"
        )


def _check_unlabelled_test(folders: Mapping[str, str], validation_fraction: float) -> None:
    """Check that something else is held out where the test images have no classes."""
    if "val" not in folders and validation_fraction == 0:
        raise DataError(
            f"{folders['test']} holds images without classes: sort them into class folders, or set "
            "data.validation_fraction to hold out a share of train"
        )


def _check_held_out(root: str, folders: Mapping[str, str], validation_fraction: float) -> None:
    """Check that images are held out, and that there is no more than one validation split."""
    if validation_fraction > 0 and folders.keys() >= {"val", "test"}:
        val, test = (os.path.basename(folders[name]) for name in ("val", "test"))
        raise ConfigError(
            f"{root} has both {val} and {test}, so {val} is the validation split: set "
            "data.validation_fraction to 0",
            key="data.validation_fraction",
        )
    if validation_fraction == 0 and folders.keys() == {"train"}:
        raise DataError(
            f"{root} has no held-out images: add a test folder, or set data.validation_fraction to "
            "hold out a share of train"
        )


@dataclass(frozen=True)
class HeldOut:
    """One split of a folder without training images."""

    root: str
    class_names: tuple[str, ...]
    files: SplitFiles
    passed: tuple[Passed, ...]


def scan_held_out(
    root: str, split: str, *, class_names: Sequence[str], val_labels: str | None
) -> HeldOut | None:
    """Find the classes and images of one split of a folder that has no ``train``.

    Args:
        root: The folder.
        split: ``test`` or ``val``. Without a test folder ``test`` is the val folder, as in `scan`.
        class_names: Those that a flat ``val`` has.
        val_labels: As of `scan`.

    Returns:
        The split. Its classes are its own folders, sorted by name. None where there is a ``train``,
        or no split at all.

    Raises:
        DataError: As `scan`, or if there is no such split.
    """
    reader = FolderReader()
    folders = split_folders(reader, root)
    if "train" in folders or not folders:
        return None
    if "test" not in folders:
        folders["test"] = folders.pop("val")
    if split not in folders:
        held = few([os.path.basename(folder) for folder in folders.values()])
        raise DataError(f"{root} has no {split} split: it holds {held}")
    folder = folders[split]
    flat = _flat_folder(reader, folder, ())
    if flat is not None:
        files = _scan_flat(reader, root, flat, class_names, val_labels)
        return HeldOut(root, tuple(class_names), files, reader.passed)
    own = _class_names(reader, folder)
    return HeldOut(root, own, _scan_split(reader, folder, own), reader.passed)


def _class_names(reader: FolderReader, split: str) -> tuple[str, ...]:
    """Return the names of a split's folders, sorted.

    Raises:
        DataError: If a name is no text, which a log or a checkpoint could not hold.
    """
    names = reader.look(split).folders
    for name in names:
        if not is_usable(name):
            raise DataError(
                f"{os.path.join(split, name)}: the name of this class is not UTF-8: rename it"
            )
    return names


def remarks(found: Layout | HeldOut) -> list[str]:
    """Return what a person should know of a folder, a line each: it may not be meant.

    Folders that are passed over are searched for images.
    """
    lines = [_twins(found.class_names), passed_over(found.root, found.passed)]
    return [line for line in lines if line is not None]


def _twins(class_names: Sequence[str]) -> str | None:
    """Return which two classes differ in case, or in how Unicode writes an accent, alone."""
    seen: dict[str, str] = {}
    for name in class_names:
        plain = unicodedata.normalize("NFC", name).casefold()
        if plain in seen:
            return f"the classes {seen[plain]} and {name} differ in nothing but case or accents"
        seen[plain] = name
    return None


def _flat_folder(reader: FolderReader, split: str, class_names: Sequence[str]) -> str | None:
    """Return the folder of the images of a split without class folders.

    Returns None where the split has class folders, or is empty.
    """
    own = reader.look(split)
    if not own.folders:
        return split if own.images else None
    if own.folders == (_IMAGES,) and _IMAGES not in class_names:
        return os.path.join(split, _IMAGES)
    return None


def _scan_split(reader: FolderReader, split: str, class_names: Sequence[str]) -> SplitFiles:
    """Return the images of a split by the class folders they lie in."""
    own = reader.read(split)
    reader.pass_over(split, own.images, Reason.BESIDE_CLASSES)
    if not own.folders:
        raise DataError(
            f"{split} has no class folders: it should hold one folder of images per class"
        )
    unknown = sorted(set(own.folders) - set(class_names))
    if unknown:
        near = suggest(unknown[0], class_names)
        raise DataError(
            f"{os.path.join(split, unknown[0])}: the class {unknown[0]!r} has no folder in "
            f"train{near}"
        )
    classes: dict[str, list[str]] = {name: [] for name in class_names}
    for name in own.folders:
        classes[name] = _class_images(reader, os.path.join(split, name))
    return _by_class(classes)


def _scan_flat(
    reader: FolderReader,
    root: str,
    folder: str,
    class_names: Sequence[str],
    val_labels: str | None,
) -> SplitFiles:
    """Return the images of a flat split by the classes that a file gives them."""
    found = reader.read(folder)
    reader.pass_over(folder, found.folders, Reason.INSIDE_CLASS)
    classes: dict[str, list[str]] = {name: [] for name in class_names}
    own = read_classes(root, folder, found.images, classes.keys(), val_labels)
    for name, class_name in zip(found.images, own, strict=True):
        classes[class_name].append(os.path.join(folder, name))
    return _by_class(classes)


def _by_class(classes: Mapping[str, Sequence[str]]) -> SplitFiles:
    paths = tuple(chain.from_iterable(classes.values()))
    return SplitFiles(paths, tuple(len(own) for own in classes.values()))


def _class_images(reader: FolderReader, folder: str) -> list[str]:
    """Return the paths of a class's images, sorted."""
    own = reader.read(folder)
    if not own.images and _IMAGES in own.folders:
        others = [name for name in own.folders if name != _IMAGES]
        reader.pass_over(folder, others, Reason.INSIDE_CLASS)
        folder = os.path.join(folder, _IMAGES)
        own = reader.read(folder)
    if not own.images:
        suffixes = ", ".join(SUFFIXES)
        instead = few([*own.folders, *(os.path.basename(each.path) for each in own.passed)])
        but = f", but {instead}" if instead else ""
        raise DataError(
            f"{folder} holds no images ({suffixes}){but}: add some or delete the folder"
        )
    reader.pass_over(folder, own.folders, Reason.INSIDE_CLASS)
    return [os.path.join(folder, name) for name in own.images]
