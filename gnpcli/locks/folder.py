"""The lock of a folder."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol

from gnpcli.locks.flock import Flock
from gnpcli.locks.holder import FolderExists, FolderInUse, LockLost
from gnpcli.locks.lease import STALE_S, Lease

Making = Literal["never", "if missing", "always"]
"""Whether a lock makes its folder; ``always`` fails where the folder is there."""

_TRIES = 100
_POLL_S = 0.5


class Grip(Protocol):
    """A lock that is held."""

    @property
    def is_lost(self) -> bool:
        """Whether another process has it by now."""

    def release(self) -> None:
        """Give it up."""


class FolderLock:
    """Holds a folder for this process alone. A context manager.

    Args:
        folder: The folder. Its lock file is made in it, and removed at the end.
        on_busy: Told, once, that another process holds the folder; the lock then waits for it. None
            waits for nobody.
        making: Whether the folder is made. A folder that the lock made is removed again, with the
            parents that it made, where it is empty in the end.

    Raises:
        FolderInUse: On entering: it is held, and `on_busy` is None.
        FolderExists: On entering: `making` is ``always``, and the folder is there.
        OSError: On entering: the folder is missing, or cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        *,
        making: Making = "never",
        on_busy: Callable[[FolderInUse], None] | None = None,
    ):
        self.folder = folder
        self._making = making
        self._on_busy = on_busy
        self._made: list[Path] = []
        self._grip: Grip | None = None

    def check(self) -> None:
        """Do nothing as long as the folder is held.

        Raises:
            LockLost: It is not any more: this process stood still for longer than `STALE_S`.
        """
        if self._grip is not None and self._grip.is_lost:
            raise LockLost(
                f"{self.folder} was taken over by another process: this one had not renewed its "
                f"lease for {STALE_S:.0f} s"
            )

    def __enter__(self) -> FolderLock:
        try:
            self._grip = self._take() if self._on_busy is None else self._wait(self._on_busy)
        except BaseException:
            self._remove_made()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._grip is not None:
            self._grip.release()
            self._grip = None
        self._remove_made()

    def _wait(self, on_busy: Callable[[FolderInUse], None]) -> Grip:
        is_told = False
        while True:
            try:
                return self._take()
            except FolderInUse as error:
                if not is_told:
                    on_busy(error)
                is_told = True
            time.sleep(_POLL_S)

    def _take(self) -> Grip:
        for _ in range(_TRIES):
            if self._making != "never":
                self._make()
            try:
                return Flock.take(self.folder) or Lease.take(self.folder)
            except FileNotFoundError:
                # Who held it may just have removed the folder that it had made.
                if self._making == "never":
                    raise
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.folder))

    def _make(self) -> None:
        missing = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
        must_be_new = self._making == "always" and self.folder not in self._made
        for path in reversed([*missing] or [self.folder]):
            try:
                path.mkdir()
            except FileExistsError:
                if path == self.folder and must_be_new:
                    raise FolderExists(f"{path} is there already") from None
            else:
                self._made.append(path)

    def _remove_made(self) -> None:
        for path in reversed(self._made):
            with contextlib.suppress(OSError):  # not empty: a run is in it
                path.rmdir()
        self._made = []
