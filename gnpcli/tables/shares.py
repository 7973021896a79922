"""The devices of this machine, divided among cells that run at the same time. jax is not asked: it
would take them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass, field

from gnpcli.errors import ConfigError


@dataclass(frozen=True)
class Share:
    """What one process at a time may use."""

    environment: dict[str, str] = field(default_factory=dict)
    """Variables that say so."""
    cpus: list[int] | None = None
    """Cores; None leaves them all."""


def shares(jobs: int) -> list[Share]:
    """Divide the GPUs, or where there is none the cores, evenly among `jobs` processes; one process
    takes them all.

    Raises:
        ConfigError: There are fewer than that.
    """
    if jobs == 1:
        return [Share()]
    gpus = _visible_gpus()
    cores = (
        sorted(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else list(range(os.cpu_count() or 1))
    )
    count, what = (len(gpus), "GPU(s)") if gpus else (len(cores), "core(s)")
    if jobs > count:
        raise ConfigError(
            f"--jobs {jobs}, but there are {count} {what} here: at most one process for each"
        )
    if gpus:
        return [
            Share({"CUDA_VISIBLE_DEVICES": ",".join(gpus[index::jobs])}) for index in range(jobs)
        ]
    return [Share(cpus=cores[index::jobs]) for index in range(jobs)]


def _visible_gpus() -> list[str]:
    if os.environ.get("JAX_PLATFORMS", "").startswith("cpu"):
        return []
    if (chosen := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in chosen.split(",") if name.strip()]
    if shutil.which("nvidia-smi") is None:
        return []
    try:
        done = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return [
        str(index) for index, line in enumerate(done.stdout.splitlines()) if line.startswith("GPU ")
    ]
