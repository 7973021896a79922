"""Decoded images kept between runs. The cache may make a run faster, but never fail or differ.

An entry is one uncompressed ``.npz``. Its name is the fingerprint of the folder it was decoded
from. The CRC that zip keeps of every array tells a damaged entry from a sound one. An entry
replaces older ones of the same folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gnpcli.devices.process import cache_dir
from gnpcli.errors import ConfigError, DataError

Arrays = dict[str, npt.NDArray[Any]]
"""Of an entry, by name."""

FORMAT = 2
"""Part of every fingerprint: raise it whenever the same files would decode to something else."""

_log = logging.getLogger("gnpcli")
_ABANDONED_S = 3600
"""Seconds. A temporary file this old belongs to a run that was killed."""


@dataclass(frozen=True)
class Key:
    """What an entry is found by."""

    place: str
    """Of the folder, the image size and the decoding: entries of one place replace each other."""
    fingerprint: str
    """Of the folder's content."""

    @property
    def filename(self) -> str:
        """The entry's file name."""
        return f"images-{self.place}-{self.fingerprint}.npz"


def cache_key(
    root: str, groups: Mapping[str, Sequence[str]], image_size: int | None, decoding: str
) -> Key:
    """Return the fingerprint of a folder's files.

    It is of the name, the size, the inode, and the times of change of every file. The inode is
    another where folders of like files have changed places, the status time (ctime) where a program
    set the other time (mtime) back. A file system that makes inodes up costs a decoding, not a
    wrong image. The folder's own path is part of the fingerprint: archives unpack with their files'
    old times, and a folder may be mounted in the place of another.

    Args:
        root: The folder.
        groups: Its files under names that tell the groups apart (an image folder's splits), in the
            order that counts. All paths begin with `root` as it is given.
        image_size: Side that images are resized to; None keeps their own.
        decoding: `gnpcli.data.images.pixels.Decoding.name`.

    Raises:
        DataError: On a file that has gone, or may not be looked at.
    """
    parts = (FORMAT, os.path.realpath(root), image_size, decoding)
    place = hashlib.sha256(os.fsencode("\0".join(map(str, parts))))
    content = place.copy()
    for name, paths in groups.items():
        lines = [name, str(len(paths)), *(f"{path[len(root) :]}\0{_stamp(path)}" for path in paths)]
        content.update(os.fsencode("\0".join(lines)))
    return Key(place.hexdigest()[:16], content.hexdigest()[:32])


def _stamp(path: str) -> str:
    try:
        facts = os.stat(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    return f"{facts.st_size} {facts.st_ino} {facts.st_mtime_ns} {facts.st_ctime_ns}"


def cached(
    make_key: Callable[[], Key], lengths: Mapping[str, int], decode: Callable[[], Arrays]
) -> Arrays:
    """Return the arrays of an entry; where there is no sound one, decode them and write it.

    With ``GNP_NO_CACHE`` set, entries are neither read nor written.

    Args:
        make_key: Looks at the files, by `cache_key`.
        lengths: First dimension that arrays of the entry must have, by name.
        decode: Makes the arrays.

    Raises:
        DataError: As of `cache_key`, and what `decode` raises.
    """
    if os.environ.get("GNP_NO_CACHE"):
        return decode()
    key = make_key()
    found = read_cache(key, lengths)
    if found is not None:
        return found
    arrays = decode()
    # What was written to while it was decoded may be half old and half new.
    if make_key() == key:
        write_cache(key, arrays)
    else:
        _log.warning("images are not cached: their files changed while they were decoded")
    return arrays


def read_cache(key: Key, lengths: Mapping[str, int]) -> Arrays | None:
    """Return the arrays of an entry; None where there is none, or where it is damaged.

    A damaged entry leaves a note in the log.

    Args:
        key: As given to `write_cache`.
        lengths: First dimension that arrays of the entry must have, by name.
    """
    try:
        path = cache_dir() / key.filename
        with path.open("rb") as file, np.load(file, allow_pickle=False) as entry:
            arrays = {name: entry[name] for name in entry.files}
        if any(len(arrays[name]) != length for name, length in lengths.items()):
            raise ValueError("wrong number of images")
        return arrays
    except (FileNotFoundError, NotADirectoryError):
        return None
    except Exception as error:
        # Whatever a damaged zip or header brings up: the images themselves are still there.
        _log.warning(
            "the image cache %s is damaged (%s) and will be rebuilt", key.filename, _reason(error)
        )
        return None


def write_cache(key: Key, arrays: Arrays) -> None:
    """Write an entry in one step and delete older ones of the same place.

    Failure leaves a note in the log and nothing else.
    """
    try:
        folder = cache_dir()
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder, key, arrays)
    except (OSError, RuntimeError, ConfigError) as error:
        _log.warning(
            "images are decoded anew by every run, the cache cannot be written: %s", _reason(error)
        )
        return
    _prune(folder, key)


def _write(folder: Path, key: Key, arrays: Arrays) -> None:
    handle, temporary = tempfile.mkstemp(prefix=f"images-{key.place}-", suffix=".tmp", dir=folder)
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, **dict[str, Any](arrays))
        os.replace(temporary, folder / key.filename)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _prune(folder: Path, key: Key) -> None:
    """Delete entries of a place other than `key`, and what killed runs left."""
    with contextlib.suppress(OSError):
        for path in folder.glob(f"images-{key.place}-*"):
            if path.name == key.filename:
                continue
            if path.suffix != ".tmp" or time.time() - path.stat().st_mtime > _ABANDONED_S:
                path.unlink()


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
