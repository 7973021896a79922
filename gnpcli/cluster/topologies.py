"""Steps compiled for machines that are not here: TPU slices, of one host or of several.

libtpu compiles for any slice without a chip (`gnpcli[plan]` installs it). JAX looks for devices
once, so `ENVIRONMENT` has to be there before it does (`prepare_environment`). A process that does
other work with JAX as well had better leave this to one of its own.
"""

from __future__ import annotations

import math
import os
import re
from importlib.util import find_spec
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.stages import Compiled, Lowered

from gnpcli.config.resolved import Resolved
from gnpcli.data.base import DataInfo, DataSpec, FileSplit, Split
from gnpcli.data.registry import describe_data
from gnpcli.devices.mesh import mesh_over, replicated
from gnpcli.devices.rows import SplitRows, rows_on
from gnpcli.devices.start import NO_TPU
from gnpcli.engine.task import Task, build_task
from gnpcli.errors import ConfigError, DataError, GnpError
from gnpcli.step.schedules import StepKind
from gnpcli.step.state import TrainState

ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",  # what is computed here while a program is traced
    **NO_TPU,  # what libtpu wants to be told; the topology decides
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # without a chip there is nothing that two would share
}
"""Variables under which libtpu compiles on a machine without a TPU."""

_NAME = re.compile(r"(v\d+[a-z]*):(\d+(?:x\d+){1,2})")


def prepare_environment() -> None:
    """Set `ENVIRONMENT` in this process. To be called before JAX looks for devices."""
    os.environ.update(ENVIRONMENT)
    jax.config.update("jax_platforms", ENVIRONMENT["JAX_PLATFORMS"])  # read when it was imported


def has_libtpu() -> bool:
    """Return whether programs can be compiled for TPUs."""
    found = find_spec("libtpu")
    return found is not None and found.origin is not None  # a folder of that name has none


def no_libtpu() -> GnpError:
    """Return the error of a machine without libtpu."""
    return GnpError("libtpu, which compiles for TPUs, is not installed: pip install 'gnpcli[plan]'")


def tpu_devices(topology: str) -> list[jax.Device]:
    """Return the devices of a slice, those of a host side by side.

    Args:
        topology: Generation and chips along each axis, such as ``v5e:4x8`` or ``v5p:2x2x4``. The
            devices of a ``v4`` are cores, two of a chip.

    Raises:
        GnpError: libtpu is not installed.
        ConfigError: There is no such slice.
    """
    if not has_libtpu():
        raise no_libtpu()
    found = _NAME.fullmatch(topology)
    if found is None:
        raise ConfigError(f"{topology!r} is no TPU slice, for example v5e:4x4 or v5p:2x2x4")
    from jax.experimental import topologies

    chips = math.prod(map(int, found[2].split("x")))
    options: dict[str, Any] = {"chips_per_host_bounds": (1, 1, 1)} if chips == 1 else {}
    try:
        devices = topologies.get_topology_desc(topology, "tpu", **options).devices
    except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0].removeprefix("INVALID_ARGUMENT: ")
        raise ConfigError(f"there is no TPU slice {topology}: {reason}") from None
    return sorted(devices, key=lambda device: (device.process_index, device.id))


def compile_step(config: Resolved, kind: StepKind, topology: str) -> Compiled:
    """Compile a step of a run for a TPU slice. It takes minutes for a network of some size.

    Args:
        config: The run. Its data set need not be here.
        kind: Of the step.
        topology: As in `tpu_devices`.

    Returns:
        The program for one device of the slice, with its `memory_analysis`, `cost_analysis` and
        `as_text`. It cannot be run here.

    Raises:
        GnpError, ConfigError: As `tpu_devices`, and as `abstract_task`.
    """
    return lower_step(config, kind, mesh_over(config, tpu_devices(topology))).compile()


def lower_step(
    config: Resolved, kind: StepKind, mesh: Mesh, platform: str | None = None
) -> Lowered:
    """Trace a step of a run on the mesh, and lower it.

    Args:
        config: The run.
        kind: Of the step.
        mesh: From `gnpcli.devices.mesh.mesh_over`.
        platform: ``cuda`` or ``tpu`` where that is not what the devices of the mesh are.

    Raises:
        ConfigError, DataError: As `abstract_task`.
    """
    task, state, source = abstract_task(config, mesh)
    step: Any = task.steps[kind]  # `Program` does not promise what jit's function has
    platforms = None if platform is None else (platform,)
    lowered: Lowered = step.trace(state, source).lower(lowering_platforms=platforms)
    return lowered


def abstract_task(config: Resolved, mesh: Mesh) -> tuple[Task, TrainState, dict[str, Any]]:
    """Return a run of which nothing is in memory, its state, and what a step reads.

    Args:
        config: The run.
        mesh: Of any devices.

    Returns:
        The task, and shapes, types and shardings in the places of arrays.

    Raises:
        ConfigError: As `gnpcli.engine.task.build_task`.
        DataError: The sizes of the data set are not known without its files.
    """
    info = describe_data(config.data)
    if info is None:
        raise DataError(f"the image size of {config.data.name} is not known: give --data-dir")

    def place(array: Any) -> Any:
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=replicated(mesh))

    task = build_task(config, _images(info), _spec(info), mesh, place)
    return task, task.abstract_state(), _source(config, info, mesh)


def _images(info: DataInfo) -> Split | FileSplit:
    labels = np.zeros(info.num_train, np.int32)
    if info.is_streamed:
        return FileSplit([""] * info.num_train, labels)
    shape = (info.num_train, info.image_size, info.image_size, info.channels)
    return Split(np.broadcast_to(np.uint8(0), shape), labels)


def _spec(info: DataInfo) -> DataSpec:
    return DataSpec(
        name=info.name,
        class_names=tuple(map(str, range(info.num_classes))),
        image_size=info.image_size,
        channels=info.channels,
        mean=(0.5,) * info.channels,
        std=(0.25,) * info.channels,
    )


def _source(config: Resolved, info: DataInfo, mesh: Mesh) -> dict[str, Any]:
    """Return the shapes of what a feed gives to a step: the whole split, or a batch of it."""
    whole = replicated(mesh)
    batch = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    image = (info.image_size, info.image_size, info.channels)
    if info.is_streamed:
        size = config.data.batch_size
        return {
            "images": jax.ShapeDtypeStruct((size, *image), np.uint8, sharding=batch),
            "labels": jax.ShapeDtypeStruct((size,), np.int32, sharding=batch),
        }
    shape: tuple[int, ...] = (info.num_train, math.prod(image))
    where = whole
    if isinstance(rows := rows_on(mesh, config.data.placement), SplitRows):
        shape, where = rows.shape_and_sharding(*shape)
    numbers = jax.ShapeDtypeStruct((info.num_train,), np.int32, sharding=whole)
    images = jax.ShapeDtypeStruct(shape, np.uint8, sharding=where)
    return {"images": images, "labels": numbers, "order": numbers}
