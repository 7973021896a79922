"""Git LFS pointers: what lies in place of a large file that was not fetched."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

_START = b"version https://git-lfs.github.com/spec/"

IN_PLACE = "a pointer of Git LFS, not the file itself: run `git lfs pull` in its repository"
"""What a pointer is, and what to do. It completes a sentence about the file."""


def is_pointer(content: bytes) -> bool:
    """Return whether the content of a file, or its beginning, is that of a pointer."""
    return content.startswith(_START)


def pointer_advice(path: str | Path) -> str | None:
    """Return what to do where a file is a pointer of Git LFS; None where it is none, or unreadable.

    A pointer is a text of about 130 bytes that names the file and its size.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(len(_START))
    except OSError:
        return None
    return f"{path} is {IN_PLACE}" if is_pointer(start) else None


def first_advice(paths: Iterable[str | Path]) -> str | None:
    """Return what to do about the first pointer among files; None where there is none."""
    return next(filter(None, map(pointer_advice, paths)), None)
