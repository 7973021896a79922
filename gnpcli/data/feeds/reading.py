"""Chunks of batches decoded ahead by Grain, in processes of their own or in threads of this one."""

from __future__ import annotations

import gc
import re
import sys
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing import resource_tracker
from typing import Any

import numpy as np

from gnpcli.data.base import Images
from gnpcli.data.feeds.chunks import Chunk, ChunkSource, Positions
from gnpcli.data.feeds.workers import (
    in_parallel,
    number_of_processes,
    prepare_process,
    usable_cores,
)
from gnpcli.data.images.opening import silence_pillow
from gnpcli.errors import DataError

_MIN_SHARED_BYTES = 4096
"""What is smaller fits into the pipe between two processes."""
_TRACKER_REMARK = "ignore:resource_tracker:UserWarning"
"""What `python -W` takes."""
_THREADS = 2
"""Threads of a process: one decodes while the other waits for a file."""


class ChunkReader:
    """Reads chunks in order from a given one on. What it reads does not depend on `workers`.

    About two batches are decoded ahead. Processes start afresh and end with this one, even if it
    is killed. They leave Ctrl-C and SIGTERM to it, and never touch an accelerator.

    Args:
        source: What is read; every process gets a copy.
        start: Number of the first chunk.
        workers: Processes; 0 decodes in this one, in a thread for each core. None as of
            `gnpcli.data.feeds.workers.number_of_processes`.
        most: How many None takes at most.

    Raises:
        DataError: If shared memory has no room for `workers`.
    """

    def __init__(
        self, source: ChunkSource, start: int, workers: int | None, most: int | None = None
    ) -> None:
        _let_grain_read_its_flags()
        workers = number_of_processes(source, workers, most)
        if workers == 0:
            silence_pillow()
            datasets = [_in_threads(source, start)]
        else:
            # Else its start would unblock the signals that `in_parallel` blocks. It inherits the
            # block of SIGHUP, which it does not ignore by itself.
            in_parallel([_start_tracker])
            datasets = [
                _in_a_process(source, first, workers) for first in range(start, start + workers)
            ]
        iterators = [iter(dataset) for dataset in datasets]
        self._iterators: Sequence[Iterator[Chunk]] = iterators
        self._first: deque[Chunk] | None = None
        self._turn = 0
        self._end = weakref.finalize(self, in_parallel, [iterator.close for iterator in iterators])
        # At exit Grain ends them itself, and no thread can be started any more.
        self._end.atexit = False

    def read(self, images: Images) -> tuple[Positions, Positions]:
        """Read the next chunk into the first rows of `images`, uint8 ``[>= n, S, S, 3]``.

        Returns:
            `Chunk`'s ``files`` and ``skipped``.

        Raises:
            DataError: As `ChunkSource`, or if a process cannot be started or has ended by itself.
                The reader is closed then.
        """
        try:
            chunk = self._next()
            # Copied here, so that no traceback ever holds on to a block of shared memory.
            images[: len(chunk["images"])] = chunk["images"]
            return np.array(chunk["files"]), np.array(chunk["skipped"])
        except BaseException as error:
            self.close()
            explained = _explained(error)
            if explained is None:
                raise
        # The exception, which is part of a cycle, has gone by now. What it held goes here.
        gc.collect()
        raise explained

    def _next(self) -> Chunk:
        if self._first is None:  # a process starts when its first chunk is asked for
            self._first = deque(in_parallel([iterator.__next__ for iterator in self._iterators]))
        iterator = self._iterators[self._turn % len(self._iterators)]
        self._turn += 1
        return self._first.popleft() if self._first else next(iterator)

    def close(self) -> None:
        """End the processes or threads; may be called again.

        It happens by itself where the reader is forgotten.
        """
        self._end()
        # Grain's iterators complain if they outlive its modules.
        self._iterators = ()
        self._first = None


def _start_tracker() -> None:
    """Start the process in which Python frees the shared memory that others leave behind.

    It is to do so without its remark: a process that ends early leaves some, and nothing is lost.
    """
    sys.warnoptions.append(_TRACKER_REMARK)  # which is how the new process gets its filters
    try:
        resource_tracker.ensure_running()
    finally:
        sys.warnoptions.remove(_TRACKER_REMARK)


def _let_grain_read_its_flags() -> None:
    """Mark the flags of absl as parsed: Grain refuses to read its own before."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def _in_threads(source: ChunkSource, start: int) -> Any:
    """Return all chunks from `start` on as Grain's data set, decoded in a thread for each core."""
    import grain

    cores = usable_cores()
    options = grain.ReadOptions(
        num_threads=cores, prefetch_buffer_size=max(cores, 2 * source.per_batch)
    )
    return grain.MapDataset.source(source)[start:].to_iter_dataset(options)


def _in_a_process(source: ChunkSource, first: int, step: int) -> Any:
    """Return every `step`-th chunk from `first` on as Grain's data set, decoded in one process.

    Each process has a data set of its own: Grain's own way to run several ends them one after the
    other.
    """
    import grain

    options = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_THREADS)
    ahead = grain.MultiprocessingOptions(1, per_worker_buffer_size=-(-source.per_batch // step))
    shared = grain.experimental.DatasetOptions(min_shm_size=_MIN_SHARED_BYTES)
    chunks = grain.MapDataset.source(source)[first::step].to_iter_dataset(options)
    return grain.experimental.WithOptionsIterDataset(
        chunks.mp_prefetch(ahead, prepare_process), shared
    )


def _explained(error: BaseException) -> DataError | None:
    """Return what a person is told of a failure; None if it is none of theirs."""
    if isinstance(error, DataError):
        return DataError(str(error))  # without the traceback of another process
    remedy = "if memory or processes ran out, set data.workers lower"
    if isinstance(error, OSError):
        return DataError(
            f"images cannot be decoded in processes of their own ({error.strerror}): {remedy}"
        )
    if not isinstance(error, RuntimeError):
        return None
    found = re.search(r"exit code (-?\d+)", str(error))
    if found is None:
        return None
    return DataError(
        f"a process that decodes images ended by itself (exit status {found[1]}): {remedy}"
    )
