"""The mesh of devices and where arrays live on it: batches are split over it, everything else is
replicated.

The mesh has two axes, `group` and `data`. With G groups on D devices there are gcd(G, D) clusters
along `group`: each runs its share of the groups one after another, every group spread over the
devices of the cluster along `data`. So one group on eight devices is spread over all of them, eight
groups have a device each, and what a group computes is the same either way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from gnpcli.config.resolved import Resolved
from gnpcli.errors import ConfigError

GROUP, DATA = "group", "data"


def make_mesh(config: Resolved) -> Mesh:
    """Return the mesh over the local devices.

    Raises:
        ConfigError: More devices asked for than there are, or a batch size that they do not divide.
    """
    count = _count_devices(config)
    for key, size in (
        ("data.batch_size", config.data.batch_size),
        ("data.eval_batch_size", config.data.eval_batch_size or config.data.batch_size),
    ):
        if size % count:
            near = max(size // count, 1) * count
            raise ConfigError(
                f"{key} = {size} is not divisible by the {count} devices; try {near}, or set "
                "mesh.devices",
                key,
            )
    clusters = math.gcd(config.gr.groups, count)
    devices = np.asarray(jax.local_devices()[:count]).reshape(clusters, -1)
    return Mesh(devices, (GROUP, DATA), axis_types=(AxisType.Auto, AxisType.Auto))


def count_local_devices() -> int:
    """Return how many devices this process has."""
    return len(jax.local_devices())


def check_cut(config: Resolved, mesh: Mesh) -> None:
    """Refuse pieces of a training batch that the devices of a cluster cannot share evenly.

    Raises:
        ConfigError: See above (``gr.groups`` or ``train.accumulate``).
    """
    groups, pieces, batch_size = config.gr.groups, config.train.accumulate, config.data.batch_size
    key = "gr.groups" if groups >= pieces else "train.accumulate"
    parts, devices = max(groups, pieces), mesh.shape[DATA]
    if (batch_size // parts) % devices:
        near = math.ceil(batch_size / (parts * devices)) * parts * devices
        raise ConfigError(
            f"data.batch_size = {batch_size} in {key} = {parts} pieces is {batch_size // parts} "
            "examples each, which "
            f"{devices} devices cannot share evenly: try data.batch_size={near}, or set "
            "mesh.devices",
            key,
        )


def _count_devices(config: Resolved) -> int:
    available = count_local_devices()
    count = config.mesh.devices or available
    if count > available:
        raise ConfigError(
            f"mesh.devices = {count}, but this machine has {available}", "mesh.devices"
        )
    return count


_devices: ContextVar[int] = ContextVar("devices", default=1)


@contextmanager
def on_mesh(mesh: Mesh | AbstractMesh) -> Iterator[None]:
    """Say that a program which is traced inside runs on `mesh` and splits its batch over it.

    What depends on how many devices share a batch asks `is_batch_split`. It is a context and not an
    argument, so that no layer of a model has to carry it.
    """
    token = _devices.set(mesh.size)
    try:
        yield
    finally:
        _devices.reset(token)


def is_batch_split() -> bool:
    """Return whether several devices share the batch of what is traced now; see `on_mesh`."""
    return _devices.get() > 1


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of state, data sets and metrics: a full copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


Place = Callable[[Any], jax.Array]
"""Puts a NumPy or JAX array on the devices of a mesh."""


def placer(mesh: Mesh) -> Place:
    """Return a function that puts a whole array on every device of the mesh."""
    return lambda array: jax.device_put(array, replicated(mesh))


def batch_placer(mesh: Mesh) -> Place:
    """Return a function that splits the rows of a host array over the devices of the mesh.

    With several processes each gives its own rows, which become the global array in the order of
    the processes.
    """
    sharding = NamedSharding(mesh, _rows(mesh))
    return lambda array: jax.make_array_from_process_local_data(sharding, array)


def abstract(make: Callable[[], Any], mesh: Mesh) -> Any:
    """Return shapes, dtypes and shardings of what `make` would return, replicated, allocating
    nothing.
    """
    sharding = replicated(mesh)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        jax.eval_shape(make),
    )


def split_batch(mesh: Mesh, batch: Any) -> Any:
    """Constrain every leaf ``[B, ...]`` of a batch, inside jit, to be split over the devices along
    its first axis.
    """
    return jax.lax.with_sharding_constraint(batch, NamedSharding(mesh, _rows(mesh)))


def cut_batch(mesh: Mesh, batch: Any, groups: int, pieces: int) -> Any:
    """Cut every leaf ``[B, ...]`` of a batch, inside jit, into ``[groups, pieces, B / (groups *
    pieces), ...]``.

    A group is a run of consecutive rows. Piece j of a group is every `pieces`-th of its rows from j
    on: each device holds an equal share of every piece already, and nothing moves between them.
    Neither depends on the devices. An axis of one group or one piece is left out.
    """
    spread = NamedSharding(mesh, PartitionSpec(GROUP, None, DATA))
    left_out = [axis for axis, size in enumerate((groups, pieces)) if size == 1]

    def cut(leaf: jax.Array) -> jax.Array:
        rows = jnp.swapaxes(leaf.reshape(groups, -1, pieces, *leaf.shape[1:]), 1, 2)
        return jnp.squeeze(jax.lax.with_sharding_constraint(rows, spread), left_out)

    return jax.tree.map(cut, batch)


def over_groups(
    function: Callable[..., Any], mesh: Mesh, batch_argnums: Collection[int]
) -> Callable[..., Any]:
    """Run a function on every cluster of the mesh, under the mapped axis `GROUP`.

    Args:
        function: Given whole arguments, but of those at `batch_argnums` (trees of ``[groups,
            ...]``) the groups of its cluster. Its result must be the same on all clusters:
            `jax.lax.pmean` over `GROUP` makes it so.
        mesh: Within a cluster sharding stays automatic, so that a mean over a group's rows is one
            over its devices.
        batch_argnums: Positions of the arguments that are cut in groups.
    """

    def spread(*args: Any) -> Any:
        specs = tuple(
            PartitionSpec(GROUP) if index in batch_argnums else PartitionSpec()
            for index in range(len(args))
        )
        # Without the check of what varies over the axis, a derivative with respect to parameters
        # that all clusters share is the cluster's own, which is the point of groups, and not their
        # sum.
        return jax.shard_map(
            function,
            mesh=mesh,
            in_specs=specs,
            out_specs=PartitionSpec(),
            axis_names={GROUP},
            check_vma=False,
        )(*args)

    return spread


def _rows(mesh: Mesh) -> PartitionSpec:
    return PartitionSpec(mesh.axis_names)
