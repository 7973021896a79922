"""A folder belongs to one process: an exclusive lock that says who holds it.

Where the file system has `flock`, the system itself releases the lock when its process ends,
however it ends. Where it has none (some network file systems), a lease takes its place: a file that
one process alone can create, and whose time its holder renews. A lease that is not renewed is
stale.

A file that a killed process left never blocks for long: not at all with `flock`, and until the
lease is stale, `STALE_S`, without. On a mount that keeps `flock` to one machine (``local_lock`` of
NFS, ``localflock`` of Lustre) the lock guards against processes of that machine only.
"""

from __future__ import annotations

from gnpcli.locks.folder import FolderLock, Making
from gnpcli.locks.holder import (
    LEASE_FILE,
    LOCK_FILE,
    LOCK_FILES,
    FolderExists,
    FolderInUse,
    Holder,
    LockLost,
    read_holder,
)

__all__ = [
    "LEASE_FILE",
    "LOCK_FILE",
    "LOCK_FILES",
    "FolderExists",
    "FolderInUse",
    "FolderLock",
    "Holder",
    "LockLost",
    "Making",
    "read_holder",
]
