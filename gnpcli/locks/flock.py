"""A lock of the system, which releases it when its process ends."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from pathlib import Path

from gnpcli.locks.holder import LOCK_FILE, FolderInUse, Holder, parse, write

try:
    import fcntl
except ImportError:  # Windows has none
    HAS_FLOCK = False
else:
    HAS_FLOCK = True

_UNSUPPORTED = {errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS, errno.EINVAL}
_HELD = {errno.EAGAIN, errno.EACCES}


class Flock:
    """A lock of the system on a file that names the holder."""

    is_lost = False

    def __init__(self, path: Path, handle: int):
        self._path, self._handle = path, handle

    @classmethod
    def take(cls, folder: Path) -> Flock | None:
        """Return the lock; None where the file system has none.

        Raises:
            FolderInUse: It is held.
        """
        path = folder / LOCK_FILE
        while HAS_FLOCK:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_still(path, handle):  # else its last holder removed it in between
                    write(handle, Holder.me())
                    return cls(path, handle)
            except OSError as error:
                os.close(handle)
                if error.errno in _HELD:
                    raise FolderInUse(folder, _who_holds(path)) from None
                if error.errno not in _UNSUPPORTED:
                    raise
                path.unlink(missing_ok=True)
                break
            os.close(handle)
        return None

    def release(self) -> None:
        with contextlib.suppress(OSError):  # the folder may be gone
            self._path.unlink()
        os.close(self._handle)


def _is_still(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(handle))
    except FileNotFoundError:
        return False


def _who_holds(path: Path) -> Holder | None:
    """Return who holds a lock that is held; it writes its name just after it has taken it."""
    for _ in range(20):
        with contextlib.suppress(OSError):
            holder = parse(path.read_bytes())
            if holder is not None:
                return holder
        time.sleep(0.01)
    return None
