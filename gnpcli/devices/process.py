"""Process set-up around jax, the cache folder, and the description of what a run ran on."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from gnpcli import __version__
from gnpcli.config.paths import expanded_variable, user_path
from gnpcli.files import text_if_any

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for reuse; does nothing with another C library.

    On CPU, XLA takes the temporaries of every step from malloc. By default glibc gives large blocks
    back to the kernel at once, and the next step pays for a page fault on each page again: see
    docs/results for what it costs.
    """
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_TRIM_THRESHOLD, -1)
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_ARENA_MAX, 1)


def age_s() -> float | None:
    """Return the seconds since this process began, to a hundredth; None where Linux does not tell.

    The imports before the first line of a program count.
    """
    with contextlib.suppress(OSError, AttributeError, ValueError):
        # The name in brackets may hold blanks; behind it, field 22 is the start in ticks.
        fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        began_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return round(time.clock_gettime(time.CLOCK_BOOTTIME) - began_s, 2)
    return None


def cache_dir() -> Path:
    """Return ``$GNP_CACHE_DIR``, else ``$XDG_CACHE_HOME/gnp``, else ``~/.cache/gnp``.

    The folder need not exist.

    Raises:
        ConfigError: If neither variable is set and there is no home directory.
    """
    if own := expanded_variable("GNP_CACHE_DIR"):
        return Path(own)
    if shared := expanded_variable("XDG_CACHE_HOME"):
        return Path(shared) / "gnp"
    return user_path("~/.cache/gnp")


def describe_environment() -> dict[str, Any]:
    """Return versions, devices, platform and the commit of the checkout, JSON-able.

    An installed package has no checkout: its commit is None.
    """
    import jax

    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "pillow")
    versions: dict[str, str | None] = {"gnpcli": __version__}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    devices = jax.devices()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
        "backend": devices[0].platform,
        "devices": [device.device_kind for device in devices],
        "processes": jax.process_count(),
        "processor": f"{processor()}, {os.cpu_count()} cores",
        "git_commit": _git_commit(),
    }


def processor() -> str:
    """Return the name of the processor of this machine."""
    for line in text_if_any(Path("/proc/cpuinfo")).splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _git_commit() -> str | None:
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
        return done.stdout.strip()
    return None


def keep_compiled_programs() -> None:
    """Keep compiled programs on disk, where a later process finds them.

    The next run, resume or evaluation of the same shapes then starts without compiling. The
    programs live in ``xla`` under the cache folder. jax decides by program, versions, flags and
    hardware what may be used again. A folder that cannot be written costs a compilation, nothing
    else.
    """
    import jax

    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
