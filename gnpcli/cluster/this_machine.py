"""The CPU that this runs on, as a machine to plan for: its rates are measured."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from gnpcli.bench.timing import matmul_flops_per_s
from gnpcli.cluster.chips import Chip, Machine
from gnpcli.config.resolved import Resolved
from gnpcli.devices.memory import device_memory
from gnpcli.devices.mesh import is_on_cpu, make_mesh

_BYTES = 1 << 28
"""Of the array with which the bandwidth is measured: more than caches hold."""


def this_machine(configs: Sequence[Resolved]) -> Machine:
    """Measure this CPU: the rate of a large product, and of adding to a large array.

    Args:
        configs: At least one. The product is measured in the compute type of each.

    Raises:
        ConfigError: As `gnpcli.devices.mesh.make_mesh`.
    """
    mesh = make_mesh(configs[0])
    of_type = {config.train.dtype: config for config in configs}
    chip = Chip(
        name="cpu",
        title="this CPU",
        kind="cpu",
        peak={dtype: product_rate(config) / mesh.size for dtype, config in of_type.items()},
        memory=float(device_memory() or math.inf),
        bandwidth=_bandwidth() / mesh.size,
        link=math.inf,
        sources=("measured now",),
    )
    return Machine("cpu", chip, mesh.size)


def product_rate(config: Resolved) -> float:
    """Return the FLOP a second of a large product of matrices, on all devices of a run together.

    Args:
        config: Its compute type is that of the product.

    Raises:
        ConfigError: As `gnpcli.devices.mesh.make_mesh`.
    """
    mesh = make_mesh(config)
    rate = matmul_flops_per_s(config.train.dtype, mesh)
    return rate if is_on_cpu(mesh) else rate * mesh.size  # a CPU's share its cores


def _bandwidth() -> float:
    """Return the bytes a second that an addition in place reads and writes, the best of ten.

    In place, as the system takes longer to hand out new memory than the addition does.
    """
    array = jnp.zeros(_BYTES // 4, jnp.float32)
    add = jax.jit(lambda x: x + 1, donate_argnums=0)
    array = jax.block_until_ready(add(array))
    best = math.inf
    for _ in range(10):
        start = time.perf_counter()
        array = jax.block_until_ready(add(array))
        best = min(best, time.perf_counter() - start)
    return 2 * _BYTES / best
