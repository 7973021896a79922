"""The file that gives the classes of a flat validation folder, as ImageNet has it.

Either every line is a class, in the order of the images sorted by name. Or every line holds an
image and its class, with a tab, a comma or a space between them and possibly more after them. A
class is the name of its folder in ``train``. An image may do without its suffix, and come with
folders.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence

from gnpcli.config.paths import expanded
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
    path = _find(root, folder) if given is None else expanded(given, "data.val_labels")
    lines = _read_lines(path)
    if all(line in class_names for line in lines.values()):
        if len(lines) != len(names):
            raise DataError(
                f"{path} gives {len(lines)} classes for the {len(names)} images in {folder}"
            )
        return list(lines.values())
    return _of_pairs(path, lines, folder, names, class_names)


def _read_lines(path: str) -> dict[int, str]:
    """Return the lines that are not empty, stripped, by number from 1."""
    lines: dict[int, str] = {}
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
            for number, line in enumerate(file, 1):
                text = line.strip()
                if text:
                    lines[number] = text
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    return lines


def _find(root: str, folder: str) -> str:
    val = os.path.join(root, "val")
    places = [os.path.join(val, name) for name in (*_IN_VAL, *_IN_EITHER)]
    places += [os.path.join(root, name) for name in _IN_EITHER]
    for place in places:
        if os.path.isfile(place):
            return place
    raise DataError(
        f"{folder} holds images without classes: sort them into class folders, or name a file of "
        f"their classes with data.val_labels (there is none of {', '.join(places)})"
    )


def _of_pairs(
    path: str,
    lines: Mapping[int, str],
    folder: str,
    names: Sequence[str],
    class_names: Collection[str],
) -> list[str]:
    """Return the class of each image from lines that hold an image and its class."""
    known = {os.path.splitext(name)[0]: name for name in names}
    known.update((name, name) for name in names)
    classes: dict[str, str] = {}
    first = min(lines, default=0)
    for number, line in lines.items():
        image, own = _pair(line, class_names)
        name = known.get(os.path.basename(image))
        is_header = number == first and name is None and own not in class_names
        # A class alone is not at fault: since not every line is one, some other line is.
        is_class = not own and image in class_names
        if is_class or (own and is_header):
            continue
        problem = _problem(image, own, name, folder, class_names)
        if name in classes:
            problem = problem or f"{image!r} has a line already"
        if problem is not None:
            raise DataError(f"{path} line {number}: {problem}")
        assert name is not None
        classes[name] = own
    _check_complete(path, classes, folder, names)
    return [classes[name] for name in names]


def _problem(
    image: str, own: str, name: str | None, folder: str, class_names: Collection[str]
) -> str | None:
    """Return what is wrong with a line; None for nothing.

    Args:
        image: The line's first field.
        own: Its second field, which should be a class.
        name: The image's file name; None where there is no such image.
        folder: The folder of the images.
        class_names: The classes there are.
    """
    if not own:
        return f"{image!r} is neither a class of train nor an image and its class"
    if name is None:
        return f"there is no image {image!r} in {folder}"
    if own not in class_names:
        return f"the class {own!r} has no folder in train"
    return None


def _check_complete(
    path: str, classes: Mapping[str, str], folder: str, names: Sequence[str]
) -> None:
    missing = [name for name in names if name not in classes]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise DataError(f"{path} gives no class for {os.path.join(folder, missing[0])}{more}")


def _pair(line: str, class_names: Collection[str]) -> tuple[str, str]:
    """Return the first two fields of a line: an image and its class.

    The second field ends at its first space unless all of it is a class. It is empty where the line
    has one field.
    """
    separator = None
    for mark in ("\t", ","):
        if mark in line:
            separator = mark
            break
    first, *rest = line.split(separator, 2)
    own = rest[0].strip() if rest else ""
    if own not in class_names:
        own = own.partition(" ")[0]
    return first.strip(), own
