"""A file that cannot be read, told apart from a damaged one.

Damage is what was read and is wrong, or is not there. It is of that file alone. An error of reading
says nothing of the file: the next try may succeed, so nothing may be changed because of it.
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

from gnpcli.errors import CheckpointError
from gnpcli.files import read_file
from gnpcli.git_lfs import IN_PLACE, is_pointer

_DAMAGE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR}
"""Something is missing, or another kind of thing is in its place."""
_NAMED = (
    errno.EACCES,
    errno.EAGAIN,
    errno.EBUSY,
    errno.EINTR,
    errno.EIO,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENODEV,
    errno.ENOMEM,
    errno.ENXIO,
    errno.EPERM,
    errno.ESTALE,
    errno.ETIMEDOUT,
)
"""Errors of the system that are known by their text, where a library passes on that alone."""
_BLOCK_BYTES = 1 << 24
_NUMBERED = re.compile(r"os_error_code='(\d+)'")
"""How TensorStore ends the text of an error of the system."""
_STATUS = ("RESOURCE_EXHAUSTED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "PERMISSION_DENIED")
"""Codes of Abseil that say nothing of what was read."""


class RunReadError(CheckpointError):
    """A file of a run that the system could not read. Nothing was changed.

    Args:
        path: The file or folder.
        why: What the system said.
    """

    def __init__(self, path: Path | str, why: str):
        super().__init__(
            f"cannot read {path}: {why}; nothing was changed. Try again, or move what cannot be "
            "read out of the run folder"
        )


def is_damage(error: OSError) -> bool:
    """Return whether an error of opening or reading says that the file is damaged or missing."""
    return error.errno in _DAMAGE


def read_bytes(path: Path) -> bytes:
    """Return the content of a file.

    Raises:
        RunReadError: The system could not read it.
        OSError: It is missing, or a folder, a pipe or a device.
    """
    try:
        content = read_file(path)
    except OSError as error:
        if is_damage(error):
            raise
        raise RunReadError(path, error.strerror or str(error)) from error
    _refuse_pointer(path, content)
    return content


def check_readable(folder: Path) -> None:
    """Read every file of a folder to its end.

    Raises:
        RunReadError: The system could not read one. What is missing is no such error.
    """
    for place, _, names in os.walk(folder, onerror=_raise_unless_damage):
        for name in names:
            _read_through(Path(place, name))


def _read_through(path: Path) -> None:
    try:
        with open(path, "rb", buffering=0) as file:
            block = file.read(_BLOCK_BYTES)
            _refuse_pointer(path, block)
            while block:
                block = file.read(_BLOCK_BYTES)
    except OSError as error:
        error.filename = str(path)
        _raise_unless_damage(error)


def _refuse_pointer(path: Path, content: bytes) -> None:
    """A pointer in place of a file is no damage: the file can be had."""
    if is_pointer(content):
        raise RunReadError(path, f"it is {IN_PLACE}")


def _raise_unless_damage(error: OSError) -> None:
    if not is_damage(error):
        raise RunReadError(error.filename, error.strerror or str(error)) from error


def system_reason(error: BaseException) -> str | None:
    """Return what the system said, from what a library made of it; None where it is not to blame.

    Orbax and TensorStore raise ValueError and others. Their text has the text of the system, or its
    number.
    """
    if isinstance(error, MemoryError):
        return os.strerror(errno.ENOMEM)
    if isinstance(error, OSError) and error.errno is not None:
        return None if is_damage(error) else error.strerror
    text = str(error)
    numbers = {int(number) for number in _NUMBERED.findall(text)} - _DAMAGE
    if numbers:
        return os.strerror(min(numbers))
    known = [*map(os.strerror, _NAMED), *_STATUS]
    # Of two that fit, one is the start of the other.
    return max((reason for reason in known if reason in text), key=len, default=None)
