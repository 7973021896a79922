"""Batches in pieces: which files a batch holds in which order, and their decoding, as Grain's
processes run it.

The rows of a batch are split between the hosts and each host's rows into pieces of a few images, so
that a batch is decoded by all processes at once. What a row holds is a function of (seed, step,
row): neither the number of hosts, processes or threads nor the size of a piece changes it. No JAX.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, TypedDict

import numpy as np
import numpy.typing as npt

from gnpcli.data.base import Images
from gnpcli.data.images.crops import Transform
from gnpcli.errors import DataError

Positions = npt.NDArray[np.int64]
Seed = tuple[int, ...]

_ORDER, _ROW = 0, 1  # kinds of random numbers drawn from one seed
_PIECE_BYTES = 1 << 21
_ENDLESS = 1 << 60


class Piece(TypedDict):
    """Some consecutive rows of a batch."""

    images: Images
    """uint8 ``[n, S, S, 3]``."""
    files: Positions
    """int64 ``[n]``: position of each row's file; -1 where it could not be read, in evaluation."""
    skipped: Positions
    """int64: positions of files that could not be read."""


class Order(Protocol):
    """Which files the steps of a run read."""

    def __call__(self, step: int) -> Positions:
        """Return the positions of the files of a step's global batch, int64 ``[B]``; at the end
        fewer or none.
        """


@dataclass(frozen=True)
class ShuffledOrder:
    """Every epoch in an order of its own, a permutation drawn from (seed, epoch) of which the
    remainder is left out.
    """

    size: int
    """Files."""
    batch_size: int
    """At most `size`."""
    seed: Seed

    def __call__(self, step: int) -> Positions:
        """Return positions, int64 ``[batch_size]``."""
        epoch, batch = divmod(step, self.size // self.batch_size)
        return _permutation(self.size, self.seed, epoch)[
            batch * self.batch_size : (batch + 1) * self.batch_size
        ]


@dataclass(frozen=True)
class FileOrder:
    """Every file once, in order."""

    size: int
    batch_size: int

    def __call__(self, step: int) -> Positions:
        """Return positions, int64 ``[batch_size]``; in the last batch fewer, after it none."""
        return np.arange(step * self.batch_size, min((step + 1) * self.batch_size, self.size))


@lru_cache(maxsize=2)  # pieces are asked for in order, around the turn of an epoch from two of them
def _permutation(size: int, seed: Seed, epoch: int) -> Positions:
    order = np.random.default_rng([*seed, _ORDER, epoch]).permutation(size)
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


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """The pieces of a run as a random-access source for Grain: item ``step * per_batch + part`` is
    a `Piece`.

    There is no last one: at its end Grain keeps a block of shared memory until the next garbage
    collection, which may not come any more. Beyond what `order` knows pieces are empty.

    Args:
        paths: Files of the split.
        transform: From file to pixels.
        order: Files of each step.
        seed: With step and row, of an image's random numbers.
        first_row: First row of the global batch that belongs to this host.
        num_rows: Rows of this host.
        replace: In place of a file that cannot be read take the next one that can, the first after
            the last. False leaves the row black and marks it.
        skip: Whether files that cannot be read are skipped at all.
    """

    paths: PackedPaths
    transform: Transform
    order: Order
    seed: Seed
    first_row: int
    num_rows: int
    replace: bool
    skip: bool

    @property
    def piece_rows(self) -> int:
        """Rows of a piece; the last one of a batch may have fewer."""
        return min(self.num_rows, max(1, _PIECE_BYTES // (3 * self.transform.image_size**2)))

    @property
    def piece_bytes(self) -> int:
        """Size of a piece's images in memory."""
        return self.piece_rows * 3 * self.transform.image_size**2

    @property
    def per_batch(self) -> int:
        """Pieces of a batch."""
        return -(-self.num_rows // self.piece_rows)

    def __len__(self) -> int:
        """Return more pieces than anyone reads."""
        return _ENDLESS

    def __getitem__(self, index: int) -> Piece:
        """Read and decode a piece.

        Raises:
            DataError: On a file that cannot be read, unless such files are skipped; or if all are.
        """
        step, part = divmod(index, self.per_batch)
        first = self.first_row + part * self.piece_rows
        end = min(first + self.piece_rows, self.first_row + self.num_rows)
        wanted = self.order(step)[first:end]
        size = self.transform.image_size
        images = np.empty((len(wanted), size, size, 3), np.uint8)
        files = np.empty(len(wanted), np.int64)
        skipped: list[int] = []
        for at, file in enumerate(wanted.tolist()):
            files[at] = self._read(file, (step, first + at), images[at], skipped)
        return {"images": images, "files": files, "skipped": np.asarray(skipped, np.int64)}

    def _read(self, file: int, place: tuple[int, int], out: Images, skipped: list[int]) -> int:
        """Decode a file into `out`, uint8 ``[S, S, 3]``; return the position of the file that is
        there now, or -1.
        """
        for tried in range(len(self.paths) if self.replace else 1):
            at = (file + tried) % len(self.paths)
            try:
                out[...] = self.transform(
                    self.paths[at], np.random.default_rng([*self.seed, _ROW, *place])
                )
                return at
            except DataError:
                if not self.skip:
                    raise
                skipped.append(at)
        if self.replace:
            raise DataError(
                f"none of the {len(self.paths)} training images could be read, the first is "
                f"{self.paths[0]}"
            )
        out[...] = 0
        return -1
