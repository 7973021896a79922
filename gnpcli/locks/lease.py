"""A lease: a file that one process alone can create, and whose time its holder renews."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

from gnpcli.locks.holder import LEASE_FILE, FolderInUse, Holder, parse, write

BEAT_S = 10.0
"""Seconds between two renewals."""
STALE_S = 60.0
"""Seconds without a renewal after which a lease may be taken over."""

_TRIES = 100


class Seen(NamedTuple):
    """A lease as another process finds it."""

    holder: Holder | None
    """None where the file does not say."""
    age_s: float
    """Since its last renewal, by the clock of the file system."""
    mark: str
    """Changes with every holder and every renewal."""

    @property
    def is_stale(self) -> bool:
        """Whether its holder has ended, or has not renewed it in time."""
        return self.age_s > STALE_S or (self.holder is not None and self.holder.is_dead())


class Lease:
    """A file that exists while the folder is held. A thread renews its time.

    A stale lease is replaced, never removed and made anew. Who replaces it first makes a file that
    is named after what it found, which one process alone can make. So two that find the same stale
    lease cannot both take it.
    """

    def __init__(self, path: Path, holder: Holder):
        self._path, self._holder = path, holder
        self._ended = threading.Event()
        self._was_lost = False
        self._renewed = time.time()
        threading.Thread(target=self._renew, name="gnp-lease", daemon=True).start()

    @classmethod
    def take(cls, folder: Path) -> Lease:
        """Return the lease.

        Raises:
            FolderInUse: It is held, or is being taken over.
        """
        path, holder = folder / LEASE_FILE, Holder.me()
        for _ in range(_TRIES):
            if _create(path, holder):
                return cls(path, holder)
            seen = _look(path)
            if seen is None:  # released in between
                continue
            if not seen.is_stale:
                raise FolderInUse(folder, seen.holder)
            if _replace(path, seen, holder):
                return cls(path, holder)
        raise FolderInUse(folder, None)

    @property
    def is_lost(self) -> bool:
        """Whether another process has it by now.

        A process that stood still, as after SIGSTOP, asks before its thread does.
        """
        if not self._was_lost and time.time() - self._renewed > STALE_S / 2:
            self._beat()
        return self._was_lost

    def _renew(self) -> None:
        while not self._was_lost and not self._ended.wait(BEAT_S):
            self._beat()

    def _beat(self) -> None:
        with contextlib.suppress(OSError):  # a server that is away may come back
            if not self._is_mine():
                self._was_lost = True
                return
            os.utime(self._path)
            self._renewed = time.time()

    def _is_mine(self) -> bool:
        found = parse(self._path.read_bytes()) if self._path.exists() else None
        return found is not None and found.token == self._holder.token

    def release(self) -> None:
        self._ended.set()
        with contextlib.suppress(OSError):
            if self._is_mine():
                self._path.unlink()


def _replace(path: Path, seen: Seen, holder: Holder) -> bool:
    """Replace a stale lease; return False where it is not what was `seen` any more."""
    marker = path.with_name(f"{path.name}.{seen.mark}")
    if not _create(marker, holder):
        other = _look(marker)
        if other is not None and other.is_stale:  # killed while it replaced the lease
            marker.unlink(missing_ok=True)
        time.sleep(0.01)
        return False
    try:
        now = _look(path)
        if now is None or now.mark != seen.mark:
            return False
        handle, temporary = tempfile.mkstemp(prefix=f"{path.name}.", dir=path.parent)
        write(handle, holder)
        os.close(handle)
        os.replace(temporary, path)
        return True
    finally:
        marker.unlink(missing_ok=True)


def _create(path: Path, holder: Holder) -> bool:
    """Make a file that must not be there; return False where it is."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return False
    write(handle, holder)
    os.close(handle)
    return True


def _look(path: Path) -> Seen | None:
    """Return the lease at `path`; None where there is none."""
    try:
        with open(path, "rb") as file:  # to open it makes a network file system ask its server
            content, written = file.read(), os.fstat(file.fileno())
    except FileNotFoundError:
        return None
    with tempfile.TemporaryFile(dir=path.parent) as probe:
        probe.write(b"\0")  # so that its time is set, by the clock that sets the lease's
        probe.flush()
        now = os.fstat(probe.fileno()).st_mtime
    mark = hashlib.sha256(content + str(written.st_mtime_ns).encode()).hexdigest()[:16]
    return Seen(parse(content), now - written.st_mtime, mark)
