"""How much memory a device has, and how much of it a program needs."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import jax
from jax.stages import Compiled

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


@dataclass(frozen=True)
class ProgramMemory:
    """Bytes on a device of a compiled program."""

    arguments: int
    temporaries: int
    """What is there while it runs, the results that take no argument's place included."""

    @property
    def peak(self) -> int:
        """At the largest."""
        return self.arguments + self.temporaries


def program_memory(program: Compiled) -> ProgramMemory | None:
    """Return what a program needs; None where its compiler does not say."""
    found: Any = program.memory_analysis()
    if found is None:
        return None
    results = max(found.output_size_in_bytes - found.alias_size_in_bytes, 0)
    return ProgramMemory(
        arguments=int(found.argument_size_in_bytes),
        temporaries=int(found.temp_size_in_bytes + results),
    )
