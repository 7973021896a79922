"""The folders of an image folder's splits, and what is said where ``train`` is missing."""

from __future__ import annotations

import os
from collections.abc import Mapping

from gnpcli.data.images.entries import FolderReader, Reason
from gnpcli.errors import DataError
from gnpcli.terminal.words import few, listing

TREE = "train/<class>/*.png and test/<class>/*.png (or .jpg, .tif, .webp and others)"
"""How messages put the layout."""

SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
"""Names of the folders of each split, in either case."""


def split_folders(reader: FolderReader, root: str) -> dict[str, str]:
    """Return the folder of each split that there is, in the order of `SPLITS`.

    What lies beside them is passed over.

    Raises:
        DataError: If `root` is no folder or cannot be read, a split is a broken link, or two
            folders may be the same split.
    """
    if not os.path.isdir(root):
        reason = "is not a directory" if os.path.exists(root) else "does not exist"
        raise DataError(f"{root} {reason}: give a folder that holds {TREE}")
    found = reader.look(root)
    folders: dict[str, str] = {}
    for split, known in SPLITS.items():
        # The plain name first: it is what messages say.
        names = [name for name in found.folders if name.lower() in known]
        names.sort(key=lambda name: name != split)
        if names:
            folders[split] = os.path.join(root, names[0])
        for other in names[1:]:
            if not os.path.samefile(folders[split], os.path.join(root, other)):
                raise DataError(
                    f"{root} holds {listing(names)}, and each may be the {split} split: rename or "
                    "remove all but one"
                )
    for each in found.passed:
        if _split_of(os.path.basename(each.path)) is not None and os.path.islink(each.path):
            raise DataError(f"{each.path} is a broken link")
    others = [name for name in found.folders if _split_of(name) is None]
    reader.pass_over(root, others, Reason.BESIDE_SPLITS)
    reader.pass_over(root, found.images, Reason.BESIDE_CLASSES)
    return folders


def _split_of(name: str) -> str | None:
    """Return the split that a folder's name stands for."""
    return next((split for split, known in SPLITS.items() if name.lower() in known), None)


def without_train(reader: FolderReader, root: str, folders: Mapping[str, str]) -> str:
    """Return what is wrong with a folder without ``train``: what it holds, and what to do."""
    lacks = f"{root} has no train folder"
    parent, own = os.path.split(os.path.abspath(root))
    if _split_of(own) is not None and not folders:
        return f"{lacks}, it is one itself: give the folder that holds it, folder:{parent}"
    others = reader.look(root).folders
    inner = [name for name in others if "train" in _splits_below(reader, root, name)]
    if inner:
        return f"{lacks}, but {os.path.join(root, inner[0])} has: give folder:{root}/{inner[0]}"
    if folders:
        held = few([os.path.basename(folder) for folder in folders.values()])
        return f"{lacks}, but {held}: it should hold {TREE}"
    if others:
        return (
            f"{lacks}, but {few(others)}: if these are classes, move them into {root}/train, and "
            "set data.validation_fraction to hold out a share of their images"
        )
    return f"{lacks}: it should hold {TREE}"


def _splits_below(reader: FolderReader, root: str, name: str) -> set[str]:
    return {_split_of(inner) or "" for inner in reader.look(os.path.join(root, name)).folders}
