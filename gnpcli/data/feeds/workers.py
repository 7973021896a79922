"""The processes that decode: how many there are, how they start, and how they end."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from gnpcli.data.feeds.chunks import ChunkSource
from gnpcli.data.images.opening import silence_pillow
from gnpcli.devices.signals import STOP_SIGNALS
from gnpcli.errors import DataError

_T = TypeVar("_T")
_log = logging.getLogger("gnpcli")

_SHARED_MEMORY = "/dev/shm"
_CHUNKS_PER_PROCESS = 5
"""Chunks in shared memory for each process.

Twice the one that is decoded ahead, one that is written, one that is handed over, and one for
rounding up.
"""


def usable_cores() -> int:
    """Return on how many cores this process may run."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def number_of_processes(source: ChunkSource, wanted: int | None, most: int | None) -> int:
    """Return how many processes decode.

    Args:
        source: What is decoded.
        wanted: `data.workers`; None takes one for each core, as far as shared memory has room for
            what they decode ahead. Too little room is a warning then.
        most: How many None takes at most.

    Raises:
        DataError: If shared memory has no room for `wanted`.
    """
    number = wanted
    if number is None:
        number = usable_cores() if most is None else min(usable_cores(), most)
    room = _room(source)
    if room is None or number <= room:
        return number
    problem = f"{_SHARED_MEMORY} has room for {room} of {number} processes that decode images"
    remedy = "enlarge it (docker run --shm-size)"
    if wanted is not None:
        raise DataError(f"{problem}: {remedy}, or set data.workers lower; 0 needs none")
    _log.warning("%s: %s", problem, remedy)
    return room


def _room(source: ChunkSource) -> int | None:
    """Return for how many processes shared memory has room; None where it has no own size."""
    try:
        place = os.statvfs(_SHARED_MEMORY)
    except (AttributeError, OSError):  # another system's
        return None
    chunks = place.f_bavail * place.f_frsize // source.chunk_bytes
    return max(0, chunks - 2 * source.per_batch) // _CHUNKS_PER_PROCESS


def prepare_process(index: int, count: int) -> None:
    """Make a new process one that only decodes.

    Args:
        index: Number of the process. Grain gives it; it is not used.
        count: Number of all processes, as `index`.
    """
    del index, count
    import jax

    jax.config.update("jax_platforms", "cpu")
    silence_pillow()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def in_parallel(calls: Sequence[Callable[[], _T]]) -> list[_T]:
    """Make all calls at once, in threads that block `STOP_SIGNALS`; return their results.

    Processes that a call starts inherit the block: what a person sends to stop reaches this process
    alone.
    """
    with ThreadPoolExecutor(len(calls), "gnp-reading", initializer=_block_signals) as pool:
        return list(pool.map(lambda call: call(), calls))


def _block_signals() -> None:
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
