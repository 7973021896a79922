"""The file that gives the classes of a flat validation folder, as ImageNet and Tiny-ImageNet have
it.

Either every line is a class, in the order of the images sorted by name, or every line holds an
image and its class, with a tab, a comma or a space between them and possibly more after them. A
class is the name of its folder in ``train``; an image may do without its suffix, and come with
folders.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence

from gnpcli.errors import DataError

_IN_VAL = ("LABEL", "LABELS", "labels.txt", "val_annotations.txt")
_IN_EITHER = ("LOC_val_solution.csv", "imagenet_2012_validation_synset_labels.txt")


def read_classes(
    root: str, folder: str, names: Sequence[str], class_names: Collection[str], given: str | None
) -> list[str]:
    """Return the class of each image.

    Args:
        root: The folder that holds ``val``.
        folder: The folder of the images.
        names: File names of the images, sorted.
        class_names: The classes there are.
        given: The file to read; None looks for those that come with ImageNet and Tiny-ImageNet.

    Raises:
        DataError: If there is no such file or it cannot be read, an image has no line, a line no
            image, or a class is unknown; with the file and the line.
    """
    path = os.path.expanduser(given) if given is not None else _find(root, folder)
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
            lines = {number: line.strip() for number, line in enumerate(file, 1) if line.strip()}
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    if all(line in class_names for line in lines.values()):
        if len(lines) != len(names):
            raise DataError(
                f"{path} gives {len(lines)} classes for the {len(names)} images in {folder}"
            )
        return list(lines.values())
    return _of_pairs(path, lines, folder, names, class_names)


def _find(root: str, folder: str) -> str:
    val = os.path.join(root, "val")
    places = [os.path.join(val, name) for name in (*_IN_VAL, *_IN_EITHER)] + [
        os.path.join(root, name) for name in _IN_EITHER
    ]
    found = next((place for place in places if os.path.isfile(place)), None)
    if found is None:
        raise DataError(
            f"{folder} holds images without classes: sort them into class folders, or name a file "
            "of their classes "
            f"with data.val_labels (there is none of {', '.join(places)})"
        )
    return found


def _of_pairs(
    path: str,
    lines: dict[int, str],
    folder: str,
    names: Sequence[str],
    class_names: Collection[str],
) -> list[str]:
    images = {os.path.splitext(name)[0]: name for name in names} | {name: name for name in names}
    classes: dict[str, str] = {}
    for number, line in lines.items():
        image, own = _pair(line, class_names)
        if not own:
            if image in class_names:  # alone, but not every line is: some other line is at fault
                continue
            raise DataError(
                f"{path} line {number}: {image!r} is neither a class of train nor an image and its "
                "class"
            )
        name = images.get(os.path.basename(image))
        if name is None and own not in class_names and number == min(lines):
            continue  # a header
        if name is None:
            raise DataError(f"{path} line {number}: there is no image {image!r} in {folder}")
        if own not in class_names:
            raise DataError(f"{path} line {number}: the class {own!r} has no folder in train")
        if name in classes:
            raise DataError(f"{path} line {number}: {image!r} has a line already")
        classes[name] = own
    if missing := [name for name in names if name not in classes]:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise DataError(f"{path} gives no class for {os.path.join(folder, missing[0])}{more}")
    return [classes[name] for name in names]


def _pair(line: str, class_names: Collection[str]) -> tuple[str, str]:
    """Return the first and the second field of a line; of the second only the first word unless it
    is a class.
    """
    separator = next((mark for mark in ("\t", ",") if mark in line), None)
    image, own, *_ = [*(field.strip() for field in line.split(separator, 2)), ""]
    return image, own if own in class_names else own.partition(" ")[0]
