"""The devices of this machine, divided among cells that run at the same time.

jax is not asked: it would take the devices.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from gnpcli.devices.found import find_accelerators
from gnpcli.errors import ConfigError


@dataclass(frozen=True)
class Share:
    """What one process at a time may use."""

    environment: dict[str, str] = field(default_factory=dict)
    """Variables that say so."""
    cpus: list[int] | None = None
    """Cores; None leaves them all."""


def shares(jobs: int) -> list[Share]:
    """Divide the GPUs evenly among `jobs` processes, or the cores where there is no GPU.

    One process takes them all.

    Raises:
        ConfigError: There are fewer than that.
    """
    if jobs == 1:
        return [Share()]
    gpus = _visible_gpus()
    if gpus:
        _check_enough(jobs, len(gpus), "GPU(s)")
        parts = [",".join(gpus[index::jobs]) for index in range(jobs)]
        return [Share({"CUDA_VISIBLE_DEVICES": part}) for part in parts]
    cores = _visible_cores()
    _check_enough(jobs, len(cores), "core(s)")
    return [Share(cpus=cores[index::jobs]) for index in range(jobs)]


def _check_enough(jobs: int, count: int, what: str) -> None:
    if jobs > count:
        raise ConfigError(
            f"--jobs {jobs}, but there are {count} {what} here: at most one process for each"
        )


def _visible_cores() -> list[int]:
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _visible_gpus() -> list[str]:
    """Return the names of the GPUs as CUDA_VISIBLE_DEVICES has them."""
    if os.environ.get("JAX_PLATFORMS", "").startswith("cpu"):
        return []
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name for name in chosen.split(",") if name.strip()]
    return [str(index) for index, _ in enumerate(find_accelerators(ask=True).gpus)]
