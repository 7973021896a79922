"""How long steps take on this machine: counted, or measured, now or before."""

from __future__ import annotations

import math
import os
from dataclasses import asdict, replace

import jax

from gnpcli import __version__
from gnpcli.bench.steps import time_steps
from gnpcli.bench.timing import Notify
from gnpcli.cluster.image_flops import image_flops
from gnpcli.cluster.keeping import keep, kept_as
from gnpcli.cluster.this_machine import product_rate
from gnpcli.config.resolved import Resolved
from gnpcli.data.base import DataInfo
from gnpcli.devices.mesh import is_on_cpu, make_mesh
from gnpcli.devices.process import processor
from gnpcli.recipes.plan import what_a_step_depends_on
from gnpcli.tables.estimate import Speed

CPU_BATCH = 32
"""Images a CPU device is measured with: it is busy, and more take longer in proportion."""


class SpeedsHere:
    """The speed of configurations on this machine.

    Args:
        notify: Told what is counted or measured.
        measure: Time steps. Else what was measured here before counts, and where there is nothing,
            FLOP at the rate of a product of matrices.
    """

    def __init__(self, notify: Notify, *, measure: bool):
        self._notify, self._measure = notify, measure
        self._found: dict[str, Speed] = {}
        self.rates: dict[str, float] = {}
        """FLOP a second of a product of matrices, by the compute type, where that was asked for."""

    def __call__(self, config: Resolved, info: DataInfo) -> Speed:
        """Return the speed. What was found for other numbers of the same kind is taken again.

        Raises:
            ConfigError: Model, data, batch and machine do not fit together.
        """
        key = what_a_step_depends_on(config)
        if key not in self._found:
            self._found[key] = self._find(config, info)
        return self._found[key]

    @property
    def compile_s(self) -> float:
        """Seconds that the compilation of all that was measured now took."""
        return sum(speed.compile_s for speed in self._found.values())

    def _find(self, config: Resolved, info: DataInfo) -> Speed:
        parts = [_this_machine(), what_a_step_depends_on(config)]
        if self._measure:
            speed = _measured(config, self._notify)
            keep("speeds", parts, asdict(speed))
            return speed
        before = kept_as(lambda values: Speed(**values), "speeds", parts)
        if before is not None:
            return replace(before, source="measured before", compile_s=0.0)
        dtype = config.train.dtype
        if dtype not in self.rates:
            self._notify(f"measuring a product of matrices in {dtype}")
            self.rates[dtype] = product_rate(config)
        flops = image_flops(config, info, self._notify)
        rate = self.rates[dtype]
        return Speed(flops.plain / rate, flops.gnp / rate, compile_s=0.0, source="counted")


def _this_machine() -> list[object]:
    kinds = [device.device_kind for device in jax.devices()]
    return [__version__, processor(), os.cpu_count(), kinds]


def _measured(config: Resolved, notify: Notify) -> Speed:
    mesh = make_mesh(config)
    size = config.data.batch_size
    if is_on_cpu(mesh):
        size = small_batch(config, mesh.size)
        config = config.replaced({"data.batch_size": size})
    notify(f"measuring {config.model.name} at batch {size}")
    kinds = time_steps(config, rounds=2, steps=1, notify=lambda text: None)
    return Speed(
        kinds["plain"].step_s / size,
        kinds["gnp"].step_s / size,
        compile_s=sum(timed.compile_s for timed in kinds.values()),
        source="measured now",
    )


def small_batch(config: Resolved, devices: int) -> int:
    """Return a batch size of about `CPU_BATCH` a device, at most the configured one.

    Groups, microbatches and devices divide it evenly.
    """
    parts = devices * math.lcm(config.gr.groups, config.train.accumulate)
    multiples = math.ceil(CPU_BATCH * devices / parts)
    return min(config.data.batch_size, multiples * parts)
