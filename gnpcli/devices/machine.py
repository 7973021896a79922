"""What a process may use of its machine: cores and memory, also under the limits of a container.

Limits are those of Linux' control groups, of both versions: cgroups(7). What is found is a function
of a root folder.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from gnpcli.files import text_if_any

_GROUPS = Path("sys/fs/cgroup")
_NO_LIMIT = 1 << 60
"""Version 1 writes the largest multiple of a page where there is no limit."""


@dataclass(frozen=True)
class Machine:
    """None is what nobody says."""

    cores: int | None
    """Of the machine."""
    usable_cores: float | None
    """What this process may use: its affinity, and the quota of its control group."""
    memory_bytes: int | None
    available_bytes: int | None
    """What is free or can be freed."""
    limit_bytes: int | None
    """The limit of the control group; None without one."""

    @property
    def usable_bytes(self) -> int | None:
        """The smaller of memory and limit."""
        known = [size for size in (self.memory_bytes, self.limit_bytes) if size is not None]
        return min(known, default=None)


def read_machine(root: Path = Path("/")) -> Machine:
    """Return what this process may use."""
    known = _memory(root)
    machine_cores = os.cpu_count()
    quota = _quota(root)
    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else machine_cores
    usable = [float(count) for count in (mine, quota) if count is not None]
    return Machine(
        cores=machine_cores,
        usable_cores=min(usable, default=None),
        memory_bytes=known.get("MemTotal", _physical()),
        available_bytes=known.get("MemAvailable"),
        limit_bytes=_memory_limit(root),
    )


def _memory(root: Path) -> dict[str, int]:
    found = {}
    for line in text_if_any(root / "proc" / "meminfo").splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if words and words[0].isdigit():
            found[name] = int(words[0]) << 10
    return found


def _physical() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None


def _memory_limit(root: Path) -> int | None:
    found = [
        int(text)
        for folder, name in (("", "memory.max"), ("memory", "memory.limit_in_bytes"))
        for text in _settings(root, folder, name)
        if text.isdigit() and int(text) < _NO_LIMIT
    ]
    return min(found, default=None)


def _quota(root: Path) -> float | None:
    """Return how many cores' time the control group may take."""
    found = []
    for text in _settings(root, "", "cpu.max"):
        quota, _, period = text.partition(" ")
        if quota.isdigit() and period.isdigit():
            found.append(int(quota) / int(period))
    quotas = _settings(root, "cpu", "cpu.cfs_quota_us")
    periods = _settings(root, "cpu", "cpu.cfs_period_us")
    for quota, period in zip(quotas, periods, strict=False):
        if quota.isdigit() and period.isdigit():
            found.append(int(quota) / int(period))
    return min(found, default=None)


def _settings(root: Path, controller: str, name: str) -> list[str]:
    """Return a setting of the control group of this process and of those above it.

    Args:
        root: The root folder.
        controller: Of version 1; empty for version 2.
        name: The file.
    """
    base = root / _GROUPS / controller
    places = [base]
    for line in text_if_any(root / "proc" / "self" / "cgroup").splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controller in controllers.split(","):
            inner = base / path.lstrip("/")
            places += [inner, *(above for above in inner.parents if base in above.parents)]
    texts = [text_if_any(place / name).strip() for place in dict.fromkeys(places)]
    return [text for text in texts if text]
