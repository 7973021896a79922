"""Who holds a folder, as its lock file says it, and what is raised where it is held."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import socket
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from gnpcli.errors import GnpError

LOCK_FILE = ".gnp.lock"
LEASE_FILE = ".gnp.lease"
LOCK_FILES = (LOCK_FILE, LEASE_FILE)
"""What a killed process may leave in the folder that it held."""

_MAX_COMMAND = 200
"""Characters of a command; of a longer one the start is kept."""


@dataclass(frozen=True)
class Holder:
    """The process that holds a folder."""

    host: str
    pid: int
    command: str
    """As it was typed, cut to a line's length."""
    since: str
    """Local time with its zone, ISO 8601, to the second."""
    pid_space: str
    """Where `pid` means this process: a container counts its own."""
    token: str
    """Another one for every lock that is taken."""

    @classmethod
    def me(cls) -> Holder:
        """Return this process, with a new token."""
        return cls(
            host=socket.gethostname(),
            pid=os.getpid(),
            command=_plain(shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])),
            since=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            pid_space=_pid_space(),
            token=os.urandom(8).hex(),
        )

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since} ({self.command})"

    def is_me(self) -> bool:
        """Return whether it is this process, in another thread or further out."""
        return self._is_of_here() and self.pid == os.getpid()

    def is_dead(self) -> bool:
        """Return whether the process has certainly ended: only its own machine can tell."""
        if not self._is_of_here() or os.name != "posix":
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:
            return False
        return False

    def _is_of_here(self) -> bool:
        return (self.host, self.pid_space) == (socket.gethostname(), _pid_space())


class FolderInUse(GnpError):
    """Another process, or another lock of this one, holds a folder.

    Args:
        folder: Which.
        holder: Who; None where the lock file does not say.
    """

    def __init__(self, folder: Path, holder: Holder | None):
        who = "another process" if holder is None else str(holder)
        advice = "wait until that ends, or stop it"
        if holder is not None and holder.is_me():
            who += ", which is this one"
            advice = "wait until it is done there, or take another folder"
        super().__init__(f"{folder} is in use by {who}: {advice}")
        self.folder, self.holder = folder, holder


class FolderExists(GnpError):
    """A folder that was to be made is there already."""


class LockLost(GnpError):
    """A lease was not renewed in time, and another process has taken the folder over."""


def write(handle: int, holder: Holder) -> None:
    """Write who holds a folder into its lock file, which is open."""
    with contextlib.suppress(OSError):  # a full disk: the lock holds, and names nobody
        os.ftruncate(handle, 0)
        os.write(handle, json.dumps(asdict(holder)).encode() + b"\n")


def read_holder(folder: Path) -> Holder | None:
    """Return who holds a folder, as its lock files say it, without asking for the lock.

    None where no file says so. A file that a killed process left names that process.
    """
    for name in LOCK_FILES:
        with contextlib.suppress(OSError):
            holder = parse((folder / name).read_bytes())
            if holder is not None:
                return holder
    return None


def parse(content: bytes) -> Holder | None:
    """Return the holder that a file names; None where it names none."""
    try:
        fields = json.loads(content)
        host, pid, command = str(fields["host"]), int(fields["pid"]), str(fields["command"])
        since, space, token = (str(fields[key]) for key in ("since", "pid_space", "token"))
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
        return None
    if not 0 < pid < 2**31:
        return None
    return Holder(_plain(host), pid, _plain(command), _plain(since), space, token)


def _plain(text: str) -> str:
    """Return a line that a terminal shows as it is, of bounded length."""
    line = "".join(character if character.isprintable() else "?" for character in text)
    return line if len(line) <= _MAX_COMMAND else f"{line[:_MAX_COMMAND]}..."


def _pid_space() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:  # not on Linux: one for the machine
        return ""
