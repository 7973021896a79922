"""How much memory a device has."""

from __future__ import annotations

import os

import jax

from gnpcli.devices.machine import read_machine


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
    there = read_machine().usable_bytes
    return None if there is None else there // min(len(devices), used or len(devices))
