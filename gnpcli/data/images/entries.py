"""What lies in a folder of images, and what of it is passed over, in words.

Every entry that is met is an image, a folder, or passed over with a reason. What cannot be an image
is passed over without words: hidden files, what systems leave behind, and texts.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from gnpcli.errors import DataError
from gnpcli.terminal.words import few, listing, plural

SUFFIXES = (
    ".png",
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".webp",
    ".bmp",
    ".gif",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
    ".pbm",
)
"""Suffixes of images, in either case."""

_TEXTS = (".txt", ".csv", ".tsv", ".json", ".xml", ".yaml", ".yml", ".md", ".html", ".log", ".py")
"""Suffixes of files beside images that cannot be images."""
_LABELS = ("label", "labels")
"""Files that give the classes of images (`gnpcli.data.images.val_labels`)."""
_LEFT_BEHIND = ("thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin")
"""Files and folders that systems leave in folders of images."""
_MOST_COUNTED = 10_000


class Reason(Enum):
    """Why an entry is passed over: in words for one, and for several."""

    BROKEN_LINK = ("broken link", "broken links")
    SUFFIX = ("file with a suffix that is not read", "files with suffixes that are not read")
    BESIDE_CLASSES = ("file beside the class folders", "files beside the class folders")
    INSIDE_CLASS = ("folder inside a class", "folders inside classes")
    BESIDE_SPLITS = ("folder that is no split", "folders that are no splits")
    UNLABELLED = ("split without class folders", "splits without class folders")
    SPECIAL = ("entry that is no file", "entries that are no files")


_FOLDERS = (Reason.INSIDE_CLASS, Reason.BESIDE_SPLITS, Reason.UNLABELLED)
"""Reasons of folders. They count where they hold images."""


@dataclass(frozen=True)
class Passed:
    """An entry that is passed over."""

    path: str
    reason: Reason


@dataclass(frozen=True)
class Entries:
    """What a folder holds, each sorted by name."""

    images: tuple[str, ...]
    """Names of files with a suffix of `SUFFIXES`. None is opened."""
    folders: tuple[str, ...]
    """Names of folders, and of links to folders."""
    passed: tuple[Passed, ...]


class FolderReader:
    """Reads each folder once, and notes what is passed over."""

    def __init__(self) -> None:
        self._entries: dict[str, Entries] = {}
        self._passed: dict[str, Passed] = {}

    @property
    def passed(self) -> tuple[Passed, ...]:
        """What was passed over, in the order of its meeting."""
        return tuple(self._passed.values())

    def look(self, folder: str) -> Entries:
        """Return what a folder holds, without a note.

        Raises:
            DataError: If it cannot be read, or an image in it is a broken link: that is an error,
                not one image fewer.
        """
        if folder not in self._entries:
            try:
                self._entries[folder] = _read(folder)
            except OSError as error:
                raise unreadable(error, folder) from error
        return self._entries[folder]

    def read(self, folder: str) -> Entries:
        """Return what a folder holds, and note what of it is passed over; errors as `look`."""
        found = self.look(folder)
        for passed in found.passed:
            self._passed[passed.path] = passed
        return found

    def pass_over(self, folder: str, names: Sequence[str], reason: Reason) -> None:
        """Note entries of a folder."""
        for name in names:
            path = os.path.join(folder, name)
            self._passed[path] = Passed(path, reason)


def _read(folder: str) -> Entries:
    images, folders, passed = [], [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.name.lower() in _LEFT_BEHIND:
                continue
            if _is_image(entry):
                images.append(entry.name)
            elif entry.is_dir():
                folders.append(entry.name)
            else:
                reason = _why_passed(entry)
                if reason is not None:
                    passed.append(Passed(entry.path, reason))
    passed.sort(key=lambda each: each.path)
    return Entries(tuple(sorted(images)), tuple(sorted(folders)), tuple(passed))


def _is_image(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is an image by its name; files are not looked at, links are."""
    if not entry.name.lower().endswith(SUFFIXES):
        return False
    if entry.is_symlink():
        entry.stat()
    return entry.is_file()


def _why_passed(entry: os.DirEntry[str]) -> Reason | None:
    if entry.is_symlink() and not os.path.exists(entry.path):
        return Reason.BROKEN_LINK
    if not entry.is_file():
        return Reason.SPECIAL
    name = entry.name.lower()
    return None if name.endswith(_TEXTS) or name in _LABELS else Reason.SUFFIX


def unreadable(error: OSError, folder: str) -> DataError:
    """Return what a person is told of a file or folder that cannot be looked at."""
    path = error.filename or folder
    reason = "is a broken link" if os.path.islink(path) else f"cannot be read: {error.strerror}"
    return DataError(f"{path} {reason}")


def passed_over(root: str, passed: Sequence[Passed]) -> str | None:
    """Return what is passed over below `root` in one line, with counts and a few names.

    Folders without images below them are left out. Returns None where nothing is left to say.
    """
    by_reason: dict[Reason, list[str]] = {}
    for each in passed:
        by_reason.setdefault(each.reason, []).append(each.path)
    parts = []
    for reason, paths in by_reason.items():
        names = list(_with_images(paths) if reason in _FOLDERS else paths)
        if names:
            what = plural(len(names), *reason.value)
            parts.append(f"{what} ({few([_below(root, name) for name in names])})")
    return f"passed over in {root}: {listing(parts)}" if parts else None


def _with_images(folders: Sequence[str]) -> Iterator[str]:
    """Yield the folders that hold images, with their number."""
    for folder in folders:
        count = _count_images(folder)
        if count:
            more = " or more" if count == _MOST_COUNTED else ""
            yield f"{folder} with {plural(count, 'image')}{more}"


def _count_images(folder: str) -> int:
    """Return how many files below a folder have the suffix of an image, at most `_MOST_COUNTED`.

    No link below it is followed: it may lead round in a circle. A link that leads up to where the
    folder itself lies holds nothing of its own.
    """
    place, target = os.path.realpath(os.path.dirname(folder)), os.path.realpath(folder)
    if os.path.commonpath([place, target]) == target:
        return 0
    count = 0
    for _, _, names in os.walk(folder):
        own = sum(name.lower().endswith(SUFFIXES) and not name.startswith(".") for name in names)
        count = min(count + own, _MOST_COUNTED)
        if count == _MOST_COUNTED:
            break
    return count


def _below(root: str, path: str) -> str:
    return path.removeprefix(os.path.join(root, ""))
