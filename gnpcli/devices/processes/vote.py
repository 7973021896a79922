"""The vote of all processes on whether to stop, without a step that waits for the host."""

from __future__ import annotations

from collections import deque

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gnpcli.devices.processes import peers


class Vote:
    """Whether any process wants to stop, as all of them learn it at the same step.

    The votes are a flag a process, and their maximum over the mesh is a program of its own. It runs
    on the devices behind the steps that were dispatched before it, and its result is read a few
    votes later, when it is there. One process has its answer at once.

    Args:
        mesh: Over the devices of all processes.
        delay: Votes after which a result is read.
    """

    def __init__(self, mesh: Mesh, delay: int):
        self._delay = delay
        self._is_alone = peers.count() == 1
        self._pending: deque[jax.Array] = deque()
        if self._is_alone:
            return
        self._flags = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._shape = (mesh.size,)
        self._own = [device for device in mesh.devices.flat if _is_own(device)]
        result = NamedSharding(mesh, PartitionSpec())
        self._maximum = jax.jit(jnp.max, out_shardings=result)

    def __call__(self, wants_to_stop: bool) -> bool:
        """Cast a vote, and return the result of the one that was cast `delay` votes before.

        All processes call it as often, each between the same two steps. As long as no result is
        due, it is False.
        """
        if self._is_alone:
            return wants_to_stop
        result = self._maximum(self._cast(wants_to_stop))
        result.copy_to_host_async()
        self._pending.append(result)
        if len(self._pending) <= self._delay:
            return False
        return bool(self._pending.popleft())

    def _cast(self, wants_to_stop: bool) -> jax.Array:
        flag = np.full(1, wants_to_stop, np.int32)
        parts = [jax.device_put(flag, device) for device in self._own]
        return jax.make_array_from_single_device_arrays(self._shape, self._flags, parts)


def _is_own(device: jax.Device) -> bool:
    return bool(device.process_index == jax.process_index())
