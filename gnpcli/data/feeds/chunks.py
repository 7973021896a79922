"""Batches in chunks: which files a batch holds in which order, and their decoding. No JAX.

The rows of a batch are split between the hosts. Each host's rows are split into chunks of a few
images, so that all processes decode one batch at once. What a row holds is a function of (seed,
step, row). The number of hosts, processes or threads and the size of a chunk do not change it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Protocol, TypedDict, runtime_checkable

import numpy as np
import numpy.typing as npt

from gnpcli.data.base import Images
from gnpcli.data.images.crops import Transform
from gnpcli.errors import ConfigError, DataError
from gnpcli.keys import file_order_generator, image_generator

Positions = npt.NDArray[np.int64]
"""Positions of files in a split; -1 stands for a row without a file."""
Seed = tuple[int, ...]

Unreadable = Literal["error", "replace", "mark"]
"""What is done about a file that cannot be read.

``error`` raises. ``replace`` takes the next file that can be read, the first after the last.
``mark`` leaves the row black, with the position -1.
"""

_CHUNK_BYTES = 1 << 21
_ENDLESS = 1 << 60


class Chunk(TypedDict):
    """Some consecutive rows of a batch."""

    images: Images
    """uint8 ``[n, S, S, 3]``."""
    files: Positions
    """int64 ``[n]``: position of each row's file; -1 where it could not be read."""
    skipped: Positions
    """int64: positions of files that could not be read."""


@runtime_checkable
class Order(Protocol):
    """Which files the steps of a run read."""

    @property
    def batch_size(self) -> int:
        """Rows of a global batch."""

    def __call__(self, step: int) -> Positions:
        """Return the positions of the files of a step's global batch, int64 ``[batch_size]``.

        At the end of an order that ends there are fewer, or none.
        """


@dataclass(frozen=True)
class ShuffledOrder:
    """Every epoch in an order of its own: a permutation drawn from (seed, epoch).

    The remainder of the permutation, less than a batch, is left out.
    """

    size: int
    """Files."""
    batch_size: int
    """At most `size`."""
    seed: Seed

    def __call__(self, step: int) -> Positions:
        """Return positions, int64 ``[batch_size]``."""
        epoch, batch = divmod(step, self.size // self.batch_size)
        start = batch * self.batch_size
        return _permutation(self.size, self.seed, epoch)[start : start + self.batch_size]


@dataclass(frozen=True)
class FileOrder:
    """Every file once, in order."""

    size: int
    batch_size: int

    def __call__(self, step: int) -> Positions:
        """Return positions, int64 ``[batch_size]``; in the last batch fewer, after it none."""
        start = step * self.batch_size
        return np.arange(start, min(start + self.batch_size, self.size))


@lru_cache(maxsize=2)  # chunks are asked for in order; around the turn of an epoch from two of them
def _permutation(size: int, seed: Seed, epoch: int) -> Positions:
    order = file_order_generator(seed, epoch).permutation(size)
    order.flags.writeable = False
    return order


class PackedPaths:
    """Paths as one string of bytes: a million of them reach a new process in the time of a copy."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._start = os.path.commonprefix(paths)  # noqa: RUF071 - any start will do
        self._rest = os.fsencode("".join(path[len(self._start) :] + "\0" for path in paths))
        self._ends = np.flatnonzero(np.frombuffer(self._rest, np.uint8) == 0)

    def __len__(self) -> int:
        """Return the number of paths."""
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        """Return a path; `index` is at least 0."""
        begin = self._ends[index - 1] + 1 if index else 0
        return self._start + os.fsdecode(self._rest[begin : self._ends[index]])


@dataclass(frozen=True)
class HostShare:
    """Which rows of every global batch of B this host reads: ``[i B / n, (i + 1) B / n)``."""

    index: int = 0
    """i, from 0."""
    count: int = 1
    """n, the number of hosts."""

    def rows(self, batch_size: int) -> range:
        """Return the numbers of the rows.

        Raises:
            ConfigError: If the number of hosts does not divide the batch (``data.batch_size``).
        """
        if batch_size % self.count:
            raise ConfigError(
                f"the batch size {batch_size} is not divisible by {self.count} hosts",
                "data.batch_size",
            )
        num_rows = batch_size // self.count
        return range(self.index * num_rows, (self.index + 1) * num_rows)


@dataclass(frozen=True, kw_only=True)
class ChunkSource:
    """The chunks of a run by number: chunk ``step * per_batch + part`` is a part of a step's batch.

    It is a random-access source for Grain. There is no last chunk: at a source's end Grain keeps a
    block of shared memory until the next garbage collection, which may not come any more. Beyond
    what `order` knows chunks are empty.
    """

    paths: PackedPaths
    """Files of the split."""
    transform: Transform
    """From file to pixels."""
    order: Order
    """Files of each step."""
    seed: Seed
    """An image's random numbers are drawn from it, the step and the row."""
    rows: range
    """Rows of the global batch that belong to this host."""
    unreadable: Unreadable
    """What is done about a file that cannot be read."""

    @property
    def chunk_rows(self) -> int:
        """Rows of a chunk; the last one of a batch may have fewer."""
        return min(len(self.rows), max(1, _CHUNK_BYTES // self._image_bytes))

    @property
    def chunk_bytes(self) -> int:
        """Size of a chunk's images in memory."""
        return self.chunk_rows * self._image_bytes

    @property
    def per_batch(self) -> int:
        """Chunks of a batch."""
        return -(-len(self.rows) // self.chunk_rows)

    @property
    def _image_bytes(self) -> int:
        return 3 * self.transform.image_size**2

    def __len__(self) -> int:
        """Return more chunks than anyone reads."""
        return _ENDLESS

    def __getitem__(self, index: int) -> Chunk:
        """Read and decode a chunk.

        Raises:
            DataError: If a file cannot be read and `unreadable` is ``error``, or if none can and it
                is ``replace``.
        """
        step, part = divmod(index, self.per_batch)
        rows = self.rows[part * self.chunk_rows : (part + 1) * self.chunk_rows]
        wanted = self.order(step)[rows.start : rows.stop]
        size = self.transform.image_size
        images = np.empty((len(wanted), size, size, 3), np.uint8)
        files = np.empty(len(wanted), np.int64)
        skipped: list[int] = []
        for at, file in enumerate(wanted.tolist()):
            place = (step, rows.start + at)
            files[at] = self._read(file, place, images[at], skipped)
        return {"images": images, "files": files, "skipped": np.asarray(skipped, np.int64)}

    def _read(self, file: int, place: tuple[int, int], out: Images, skipped: list[int]) -> int:
        """Decode a file into `out`, uint8 ``[S, S, 3]``; return the file that is there now, or -1.

        Args:
            file: Position of the file.
            place: Step and row.
            out: Written to.
            skipped: Gets the positions of files that cannot be read.
        """
        for candidate in self._candidates(file):
            rng = image_generator(self.seed, *place)
            try:
                out[...] = self.transform(self.paths[candidate], rng)
            except DataError:
                if self.unreadable == "error":
                    raise
                skipped.append(candidate)
            else:
                return candidate
        if self.unreadable == "replace":
            raise DataError(
                f"none of the {len(self.paths)} training images could be read, the first is "
                f"{self.paths[0]}"
            )
        out[...] = 0
        return -1

    def _candidates(self, file: int) -> Iterator[int]:
        """Yield the files that may fill the row of `file`."""
        yield file
        if self.unreadable == "replace":
            for distance in range(1, len(self.paths)):
                yield (file + distance) % len(self.paths)
