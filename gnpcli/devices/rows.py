"""Rows of a data set on the devices of a mesh: a copy on each, or a share of them.

What a batch holds is the same either way, bit for bit. Only where a row lies differs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int32, Shaped

from gnpcli.config.schema import Placement
from gnpcli.devices.mesh import Place, placer

Table = npt.NDArray[Any]
"""Rows on the host, ``[N, ...]``."""
Held = Shaped[Array, "rows *row"]
Taken = Shaped[Array, "B *row"]
Positions = Int32[Array, " B"]


@runtime_checkable
class Rows(Protocol):
    """Where the rows of a table lie, and how a batch of any of them is taken."""

    @property
    def place(self) -> Place:
        """Puts a whole array on every device. Each process gives the same one."""
        ...

    def put(self, table: Table) -> jax.Array:
        """Put rows on the devices. Every process gives the whole table.

        Rows that a process's devices do not hold are not copied.
        """
        ...

    def take(self, held: Held, chosen: Positions) -> Taken:
        """Return some rows, inside jit.

        Args:
            held: From `put`.
            chosen: Positions in the table, all in range.
        """
        ...


@dataclass(frozen=True)
class WholeRows:
    """Every device has all rows. To take a batch, no device asks another one."""

    place: Place
    """Puts a whole array on every device."""

    def put(self, table: Table) -> jax.Array:
        """Put all rows on every device: ``[N, ...]``."""
        return self.place(table)

    def take(self, held: Held, chosen: Positions) -> Taken:
        """Return some rows, as `Rows.take`."""
        return held.at[chosen].get(mode="promise_in_bounds")


@dataclass(frozen=True)
class SplitRows:
    """Every device has a share of the rows.

    The share is a run of consecutive rows. To take a batch, each device gives the rows that it has,
    and zeros in the place of the others. The sum of these over the devices is the batch, of which
    each gets its part. So a device sends about one batch of rows, whatever the size of the table.
    """

    mesh: Mesh
    """All its devices share the rows. They divide every batch size."""
    instead: Place | None = None
    """Puts everything, where the devices are not here."""

    @property
    def place(self) -> Place:
        """Puts a whole array on every device."""
        return self.instead or placer(self.mesh)

    def shape_and_sharding(self, count: int, *row: int) -> tuple[tuple[int, ...], NamedSharding]:
        """Return those of so many rows: ``[share * devices, *row]``."""
        shape = (-(-count // self.mesh.size) * self.mesh.size, *row)
        return shape, NamedSharding(self.mesh, PartitionSpec(self.mesh.axis_names))

    def put(self, table: Table) -> jax.Array:
        """Put each device's rows on it: ``[share * devices, ...]``, zeros behind the table."""
        if self.instead is not None:
            return self.instead(table)
        shape, sharding = self.shape_and_sharding(*table.shape)

        def own(index: tuple[slice, ...] | None) -> Table:
            assert index is not None
            start, stop, _ = index[0].indices(shape[0])
            rows = table[start:stop]
            missing = np.zeros((stop - start - len(rows), *shape[1:]), table.dtype)
            return np.concatenate([rows, missing]) if len(missing) else rows

        return jax.make_array_from_callback(shape, sharding, own)

    def take(self, held: Held, chosen: Positions) -> Taken:
        """Return some rows, as `Rows.take`, split over the devices along the first axis."""
        axes = self.mesh.axis_names
        size = held.shape[0] // self.mesh.size

        def exchanged(own: jax.Array, chosen: jax.Array) -> jax.Array:
            positions = chosen - jax.lax.axis_index(axes) * size
            is_own = (positions >= 0) & (positions < size)
            rows = own.at[jnp.where(is_own, positions, 0)].get(mode="promise_in_bounds")
            is_row = is_own.reshape(-1, *[1] * (rows.ndim - 1))
            rows = jnp.where(is_row, rows, jnp.zeros_like(rows))
            part: jax.Array = jax.lax.psum_scatter(rows, axes, tiled=True)
            return part

        split = PartitionSpec(axes)
        batch: jax.Array = jax.shard_map(
            exchanged, mesh=self.mesh, in_specs=(split, PartitionSpec()), out_specs=split
        )(held, chosen)
        return batch


@dataclass(frozen=True)
class RowsInOrder:
    """Every device has its part of each batch, in the order of the table.

    So to take a batch, no device asks another one, and none has a row that it does not need.
    """

    mesh: Mesh
    """Its devices share every batch. They divide the batch size."""

    @property
    def place(self) -> Place:
        """Puts a whole array on every device. Each process gives the same one."""
        return placer(self.mesh)

    def put(self, table: Table, batch_size: int) -> jax.Array:
        """Put each device's rows of every batch on it: ``[batches, batch_size, ...]``.

        The last batch is filled up by the last row. Every process gives the whole table.
        """
        shape = (-(-len(table) // batch_size), batch_size, *table.shape[1:])
        sharding = NamedSharding(self.mesh, PartitionSpec(None, self.mesh.axis_names))

        def own(index: tuple[slice, ...] | None) -> Table:
            assert index is not None
            batches = np.arange(*index[0].indices(shape[0]))
            rows = np.arange(*index[1].indices(shape[1]))
            chosen = batches[:, None] * batch_size + rows
            part: Table = table[np.minimum(chosen, len(table) - 1)]
            return part

        return jax.make_array_from_callback(shape, sharding, own)

    def take(self, held: jax.Array, index: Int32[Array, ""]) -> Taken:
        """Return the rows of batch 0, 1, ... out of what `put` gave, inside jit."""
        batch: jax.Array = jax.lax.dynamic_index_in_dim(held, index, keepdims=False)
        return batch


def rows_on(mesh: Mesh, placement: Placement, place: Place | None = None) -> Rows:
    """Return where the rows of a data set lie. One device has all of them.

    Args:
        mesh: The devices.
        placement: Copies, or shares.
        place: Puts everything, where the devices are not here.
    """
    if placement == "sharded" and mesh.size > 1:
        return SplitRows(mesh, place)
    return WholeRows(place or placer(mesh))
