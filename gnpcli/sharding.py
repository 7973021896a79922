"""The mesh of devices and where arrays live on it: batches are split over `data`, everything else is replicated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gnpcli.config import RunConfig
from gnpcli.errors import ConfigError


def make_mesh(config: RunConfig) -> Mesh:
    """Return a mesh with one axis, `data`, over the local devices.

    Raises:
        ConfigError: More devices asked for than there are, or a batch size that they do not divide.
    """
    devices = jax.local_devices()
    count = config.mesh.devices or len(devices)
    if count > len(devices):
        raise ConfigError(f"mesh.devices = {count}, but this machine has {len(devices)}", "mesh.devices")
    for key, size in (
        ("data.batch_size", config.data.batch_size),
        ("data.eval_batch_size", config.data.eval_batch_size or config.data.batch_size),
    ):
        if size % count:
            near = max(size // count, 1) * count
            raise ConfigError(
                f"{key} = {size} is not divisible by the {count} devices; try {near}, or set mesh.devices", key
            )
    return Mesh(np.asarray(devices[:count]), ("data",), axis_types=(AxisType.Auto,))


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

    With several processes each gives its own rows, which become the global array in the order of the processes.
    """
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    return lambda array: jax.make_array_from_process_local_data(sharding, array)


def abstract(make: Callable[[], Any], mesh: Mesh) -> Any:
    """Return shapes, dtypes and shardings of what `make` would return, replicated, allocating nothing."""
    sharding = replicated(mesh)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), jax.eval_shape(make)
    )


def split_batch(mesh: Mesh, batch: Any) -> Any:
    """Constrain every leaf ``[B, ...]`` of a batch, inside jit, to be split over the devices along its first axis."""
    return jax.lax.with_sharding_constraint(batch, NamedSharding(mesh, PartitionSpec("data")))
