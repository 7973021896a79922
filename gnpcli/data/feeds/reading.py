"""Pieces of batches decoded ahead of who reads them, by Grain: in processes of their own, or in
threads of this one.
"""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import re
import signal
import threading
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import resource_tracker
from typing import Any, TypeVar

import numpy as np

from gnpcli.data.base import Images
from gnpcli.data.feeds.pieces import Piece, Pieces, Positions
from gnpcli.errors import DataError

_T = TypeVar("_T")
_log = logging.getLogger("gnpcli")

_SHARED_MEMORY = "/dev/shm"
_MIN_SHARED_BYTES = 4096  # what is smaller fits into the pipe between two processes
_THREADS = 2  # of a process: one decodes while the other waits for a file


def usable_cores() -> int:
    """Return on how many cores this process may run."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class PieceReader:
    """Reads pieces in order from a given one on. What it reads does not depend on `workers`.

    About two batches are decoded ahead. Processes start afresh, end with this one even if it is
    killed, leave Ctrl-C and SIGTERM to it, and never touch an accelerator.

    Args:
        pieces: What is read; every process gets a copy.
        start: Number of the first piece.
        workers: Processes; 0 decodes in this one, in a thread for each core. None takes a process
            for each core, as far as shared memory has room for what they decode ahead.
        most: How many None takes at most.

    Raises:
        DataError: If shared memory has no room for `workers`.
    """

    def __init__(
        self, pieces: Pieces, start: int, workers: int | None, most: int | None = None
    ) -> None:
        import grain
        from absl import flags

        if not flags.FLAGS.is_parsed():  # Grain's own, which it refuses to read before
            flags.FLAGS.mark_as_parsed()
        source: Any = grain.MapDataset.source(pieces)
        workers = _number_of_processes(pieces, workers, most)
        if workers == 0:
            cores = usable_cores()
            options = grain.ReadOptions(
                num_threads=cores, prefetch_buffer_size=max(cores, 2 * pieces.per_batch)
            )
            datasets = [source[start:].to_iter_dataset(options)]
        else:
            resource_tracker.ensure_running()  # else starting it unblocks the signals that `_in_parallel` blocks
            # One for each process: Grain's own way to run several ends them one after the other.
            options = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_THREADS)
            ahead = grain.MultiprocessingOptions(
                1, per_worker_buffer_size=-(-pieces.per_batch // workers)
            )
            shared = grain.experimental.DatasetOptions(min_shm_size=_MIN_SHARED_BYTES)
            datasets = [
                grain.experimental.WithOptionsIterDataset(
                    source[first::workers]
                    .to_iter_dataset(options)
                    .mp_prefetch(ahead, _prepare_process),
                    shared,
                )
                for first in range(start, start + workers)
            ]
        iterators = [iter(dataset) for dataset in datasets]
        self._iterators: Sequence[Iterator[Piece]] = iterators
        self._first: deque[Piece] | None = None
        self._turn = 0
        self._end = weakref.finalize(self, _in_parallel, [iterator.close for iterator in iterators])
        self._end.atexit = (
            False  # then Grain ends them itself, and threads cannot be started any more
        )

    def read(self, images: Images) -> tuple[Positions, Positions]:
        """Read the next piece into the first rows of `images`, uint8 ``[>= n, S, S, 3]``.

        Returns:
            `Piece`'s ``files`` and ``skipped``.

        Raises:
            DataError: As `Pieces`, or if a process cannot be started or has ended by itself. The
                reader is closed then.
        """
        try:
            if self._first is None:  # a process starts when its first piece is asked for
                self._first = deque(
                    _in_parallel([iterator.__next__ for iterator in self._iterators])
                )
            iterator = self._iterators[self._turn % len(self._iterators)]
            self._turn += 1
            piece = self._first.popleft() if self._first else next(iterator)
            # Copied here, so that no traceback ever holds on to a block of shared memory.
            images[: len(piece["images"])] = piece["images"]
            return np.array(piece["files"]), np.array(piece["skipped"])
        except BaseException as error:
            self.close()
            if (explained := _explained(error)) is None:
                raise
        # Out here, where the exception has gone, which did so from within a cycle.
        gc.collect()
        raise explained

    def close(self) -> None:
        """End the processes or threads; may be called again, and happens by itself where the reader
        is forgotten.
        """
        self._end()
        self._iterators, self._first = (
            (),
            None,
        )  # Grain's iterators complain if they outlive its modules


def _number_of_processes(pieces: Pieces, wanted: int | None, most: int | None) -> int:
    number = wanted
    if number is None:
        number = usable_cores() if most is None else min(usable_cores(), most)
    try:
        place = os.statvfs(_SHARED_MEMORY)
    except (AttributeError, OSError):  # another system's shared memory has no size of its own
        return number
    # Twice what is decoded ahead; for each process a piece being written, one handed over, and one
    # rounded up to.
    room = max(0, place.f_bavail * place.f_frsize // pieces.piece_bytes - 2 * pieces.per_batch) // 5
    if number <= room:
        return number
    problem = f"{_SHARED_MEMORY} has room for {room} of {number} processes that decode images"
    remedy = "enlarge it (docker run --shm-size)"
    if wanted is not None:
        raise DataError(f"{problem}: {remedy}, or set data.workers lower; 0 needs none")
    _log.warning("%s: %s", problem, remedy)
    return room


def _prepare_process(index: int, count: int) -> None:
    """Make a new process one that only decodes; Grain calls it with the number of the process and
    of all.
    """
    import jax

    jax.config.update("jax_platforms", "cpu")
    warnings.filterwarnings("ignore", module=r"PIL\.")  # remarks on metadata, once for each process
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _in_parallel(calls: Sequence[Callable[[], _T]]) -> list[_T]:
    """Make all calls at once, in threads, and so that processes started by them block what a person
    sends to stop.
    """
    with ThreadPoolExecutor(len(calls), "gnp-reading", initializer=_block_signals) as pool:
        return list(pool.map(lambda call: call(), calls))


def _block_signals() -> None:
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})


def _explained(error: BaseException) -> DataError | None:
    """Return what a person is told of a failure; None if it is none of theirs."""
    if isinstance(error, DataError):
        return DataError(str(error))  # without the traceback of another process
    remedy = "if memory or processes ran out, set data.workers lower"
    if isinstance(error, OSError):
        return DataError(
            f"images cannot be decoded in processes of their own ({error.strerror}): {remedy}"
        )
    if isinstance(error, RuntimeError) and (found := re.search(r"exit code (-?\d+)", str(error))):
        return DataError(
            f"a process that decodes images ended by itself (exit status {found[1]}): {remedy}"
        )
    return None
