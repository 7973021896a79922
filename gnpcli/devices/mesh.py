"""The mesh of devices, and how data lies on it.

Batches are split over the mesh. Where the state lies says `gnpcli.devices.sharding`.

The mesh has two axes, `group` and `data`. With G groups on D devices there are gcd(G, D) clusters
along `group`. Each cluster runs its share of the groups one after another, and spreads every group
over its devices along `data`. One group on eight devices is thus spread over all of them. Eight
groups on eight devices have a device each. What a group computes is the same either way.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from gnpcli.config.resolved import Resolved
from gnpcli.devices.processes import peers
from gnpcli.devices.processes.collectives import connect_devices
from gnpcli.devices.start import check_xla_flags
from gnpcli.errors import ConfigError

GROUP, DATA = "group", "data"


def make_mesh(config: Resolved) -> Mesh:
    """Return the mesh over the devices of all processes, those of a process side by side.

    Raises:
        ConfigError: More devices asked for than there are, a batch size that they do not divide, or
            processes with different numbers of devices.
    """
    mesh = mesh_over(config, _devices_in_order()[: _count_devices(config)])
    connect_devices(mesh)
    return mesh


def mesh_over(config: Resolved, devices: Sequence[jax.Device]) -> Mesh:
    """Return the mesh of a run over `devices`, which may be those of a machine that is not here.

    Raises:
        ConfigError: A batch size that they do not divide.
    """
    check_divisible(config, len(devices))
    clusters = math.gcd(config.gr.groups, len(devices))
    grid = np.asarray(devices).reshape(clusters, -1)
    return Mesh(grid, (GROUP, DATA), axis_types=(AxisType.Auto, AxisType.Auto))


OTHERWISE = "set mesh.devices"
"""What to do where so many devices cannot share a batch, other than to change the batch."""


def is_on_cpu(mesh: Mesh) -> bool:
    """Return whether the devices of a mesh are processors."""
    return bool(mesh.devices.flat[0].platform == "cpu")


def check_divisible(config: Resolved, count: int, otherwise: str = OTHERWISE) -> None:
    """Refuse a batch that so many devices do not divide.

    Args:
        config: The run.
        count: Of the devices.
        otherwise: What the message proposes.

    Raises:
        ConfigError: See above (``data.batch_size`` or ``data.eval_batch_size``).
    """
    for key, size in (
        ("data.batch_size", config.data.batch_size),
        ("data.eval_batch_size", config.data.eval_batch_size or config.data.batch_size),
    ):
        if size % count:
            near = max(size // count, 1) * count
            raise ConfigError(
                f"{key} = {size} is not divisible by the {count} devices; try {near}, or "
                f"{otherwise}",
                key,
            )


def _devices_in_order() -> list[jax.Device]:
    return sorted(jax.devices(), key=lambda device: (device.process_index, device.id))


def count_devices() -> int:
    """Return how many devices all processes have together."""
    check_xla_flags()
    return len(jax.devices())


def check_cut(config: Resolved, count: int, otherwise: str = OTHERWISE) -> None:
    """Refuse groups or microbatches that cannot be sharded evenly over a cluster.

    Args:
        config: The run.
        count: Of the devices of all clusters.
        otherwise: What the message proposes.

    Raises:
        ConfigError: See above (``gr.groups`` or ``train.accumulate``).
    """
    groups, microbatches = config.gr.groups, config.train.accumulate
    if groups >= microbatches:
        key, name, slices = "gr.groups", "groups", groups
    else:
        key, name, slices = "train.accumulate", "microbatches", microbatches
    batch_size, devices = config.data.batch_size, count // math.gcd(config.gr.groups, count)
    examples = batch_size // slices
    if examples % devices == 0:
        return
    near = math.ceil(batch_size / (slices * devices)) * slices * devices
    raise ConfigError(
        f"data.batch_size = {batch_size} in {key} = {slices} {name} is {examples} examples each, "
        f"which cannot be sharded evenly over {devices} devices: try data.batch_size={near}, "
        f"or {otherwise}",
        key,
    )


def _count_devices(config: Resolved) -> int:
    available = count_devices()
    if jax.process_count() != peers.count():
        raise ConfigError(
            f"JAX has {jax.process_count()} processes, which gnpcli was not told of: connect them "
            "by gnpcli.devices.processes.peers.connect in the place of jax.distributed.initialize"
        )
    if peers.count() > 1:
        _check_processes(config)
    count = config.mesh.devices or available
    if count > available:
        raise ConfigError(
            f"mesh.devices = {count}, but this machine has {available}", "mesh.devices"
        )
    return count


def _check_processes(config: Resolved) -> None:
    if config.mesh.devices is not None:
        raise ConfigError(
            f"mesh.devices = {config.mesh.devices} is for one process, and there are "
            f"{peers.count()}: set it to null; each process takes the devices that it sees",
            "mesh.devices",
        )
    counts = Counter(device.process_index for device in jax.devices())
    if len(set(counts.values())) > 1:
        told = ", ".join(f"process {index} has {counts[index]}" for index in sorted(counts))
        raise ConfigError(f"all processes must have as many devices, but {told}")


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
    """Return the sharding of data sets and metrics: a full copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


Place = Callable[[Any], jax.Array]
"""Puts a NumPy or JAX array on the devices of a mesh."""


def placer(mesh: Mesh) -> Place:
    """Return a function that puts a whole array on every device of the mesh.

    Every process gives the same array, which is not compared: that would take longer than to place
    it.
    """
    sharding = replicated(mesh)
    if sharding.is_fully_addressable:
        return lambda array: jax.device_put(array, sharding)
    return lambda array: _placed(array, sharding)


def _placed(array: Any, sharding: NamedSharding) -> jax.Array:
    if isinstance(array, jax.Array) and array.sharding == sharding:
        return array
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        data = _placed(jax.random.key_data(array), sharding)
        key: jax.Array = jax.random.wrap_key_data(data, impl=jax.random.key_impl(array))
        return key
    values = np.asarray(array)
    return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])


def place_tree(tree: Any, mesh: Mesh) -> Any:
    """Put every leaf of a tree on every device of the mesh, as `placer` does."""
    return jax.tree.map(placer(mesh), tree)


def batch_placer(mesh: Mesh) -> Place:
    """Return a function that splits the rows of a host array over the devices of the mesh.

    With several processes each gives its own rows, which become the global array in the order of
    the processes.
    """
    sharding = NamedSharding(mesh, _rows(mesh))
    return lambda array: jax.make_array_from_process_local_data(sharding, array)


def split_batch(mesh: Mesh, batch: Any) -> Any:
    """Split every leaf ``[B, ...]`` of a batch over the devices, along its first axis.

    It is a constraint on the sharding, for use inside jit.
    """
    return jax.lax.with_sharding_constraint(batch, NamedSharding(mesh, _rows(mesh)))


def cut_batch(mesh: Mesh, batch: Any, groups: int, microbatches: int) -> Any:
    """Cut every leaf ``[B, ...]`` of a batch into groups and microbatches, inside jit.

    A leaf becomes ``[groups, microbatches, B / (groups * microbatches), ...]``. An axis of size 1
    is left out.

    A group is a run of consecutive rows. Microbatch j of a group is every `microbatches`-th of its
    rows from j on. Each device thus holds an equal share of every microbatch already, and nothing
    moves between devices. Groups and microbatches do not depend on the devices.
    """
    spread = NamedSharding(mesh, PartitionSpec(GROUP, None, DATA))
    left_out = [axis for axis, size in enumerate((groups, microbatches)) if size == 1]

    def cut(leaf: jax.Array) -> jax.Array:
        rows = jnp.swapaxes(leaf.reshape(groups, -1, microbatches, *leaf.shape[1:]), 1, 2)
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
