"""How much memory a device has."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import jax

_GROUPS = {"": ("", "memory.max"), "memory": ("memory", "memory.limit_in_bytes")}
"""Where cgroups have their limit, by the controller: version 2 names none, and version 1 does."""


def hold_no_memory() -> None:
    """Let this process take no memory of an accelerator beforehand, as a process that trains does.

    To be called before JAX starts.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


def device_memory(used: int | None = None) -> int | None:
    """Return the bytes that a program may use on one local device; None where nobody says.

    The devices of a CPU share the memory of the machine, or what the process may take of it.

    Args:
        used: How many devices a program is on; None takes all local ones.
    """
    devices = jax.local_devices()
    if devices[0].platform != "cpu":
        limit = (devices[0].memory_stats() or {}).get("bytes_limit")
        return None if limit is None else int(limit)
    there = machine_memory()
    return None if there is None else there // min(len(devices), used or len(devices))


def machine_memory(root: Path = Path("/")) -> int | None:
    """Return the bytes that this process may use on its machine; None where nobody says.

    It is the memory of the machine, or the least limit of the process's control groups. That of a
    container is one.

    Args:
        root: Where ``proc`` and ``sys`` are.
    """
    limits = [*_limits_of_groups(root)]
    with suppress(ValueError, OSError):
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min(limits, default=None)


def _limits_of_groups(root: Path) -> Iterator[int]:
    """Yield the limits of the control groups that the process is in, and of those around them."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, inside = line.split(":", 2)
        for controller in controllers.split(","):
            if controller not in _GROUPS:
                continue
            mount, name = _GROUPS[controller]
            around = Path(inside.strip("/"))
            for group in (around, *around.parents):
                limit = _read(root / "sys/fs/cgroup" / mount / group / name).strip()
                if limit.isdecimal():  # version 2 says `max` where there is none
                    yield int(limit)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
