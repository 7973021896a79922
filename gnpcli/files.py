"""Files and damage: written whole or not at all, and set aside where something damaged them."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import stat
import time
from pathlib import Path

_ABANDONED_S = 3600.0
"""Seconds after which nobody writes a temporary file any more."""


def write_atomically(path: Path, text: str) -> None:
    """Replace a file in one step: a reader or a crash finds the old text or the new, never a part.

    Of several writers at once, the last one wins. What writers that were killed left beside `path`
    is removed where it is old enough that nobody can be writing it.

    Raises:
        OSError: It cannot be written; the old file is as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.urandom(6).hex()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        for found in leftovers(path):
            if time.time() - found.stat().st_mtime > _ABANDONED_S:
                found.unlink()


def open_at_once(path: Path) -> int:
    """Open a file for reading, and return its descriptor, which does not block.

    A pipe that nobody writes to is empty: an ordinary opening would wait for a writer.

    Raises:
        OSError: It cannot be opened.
    """
    return os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))


def read_file(path: Path) -> bytes:
    """Return what a file holds.

    Raises:
        OSError: It cannot be read. A pipe or a device, which may have no end, is refused as a
            folder is.
    """
    descriptor = open_at_once(path)
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EISDIR, "not a file", str(path))
        return file.read()


def text_if_any(path: Path) -> str:
    """Return the text of a file; nothing where it cannot be read."""
    try:
        return read_file(path).decode(errors="replace")
    except (OSError, ValueError):  # a path with a null byte
        return ""


def leftovers(path: Path) -> list[Path]:
    """Return the temporary files of writers of `path` that were killed, or are still at work."""
    name = glob.escape(path.name)
    return [*path.parent.glob(f".{name}.tmp"), *path.parent.glob(f".{name}.*.tmp")]


def set_aside(path: Path) -> Path:
    """Rename a damaged file or folder to ``NAME.damaged``, so that its place is free.

    Returns:
        The new path. It has a number where that name is taken: ``NAME.damaged2`` and so on.
    """
    target = path.with_name(f"{path.name}.damaged")
    number = 1
    while target.exists():
        number += 1
        target = path.with_name(f"{path.name}.damaged{number}")
    return path.rename(target)
