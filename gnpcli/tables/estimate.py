"""How long a table takes, from a few measured steps: the dry run."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from gnpcli.bench.steps import time_steps
from gnpcli.bench.timing import Notify, platform
from gnpcli.config.resolved import Resolved, settle
from gnpcli.config.schema import RunConfig
from gnpcli.data.feeds.base import steps_per_epoch
from gnpcli.data.registry import describe_data
from gnpcli.devices.mesh import make_mesh
from gnpcli.errors import DataError
from gnpcli.recipes.plan import count_steps
from gnpcli.recipes.presets import count_devices
from gnpcli.runs.folder import RunFolder
from gnpcli.runs.log import reached_epoch
from gnpcli.tables.cells import Cell, CellState

CPU_BATCH = 32
"""Images a CPU device is measured with: it is busy, and more take longer in proportion."""

EVALUATION = 1 / 3
"""What evaluating an image costs of what a plain step spends on it.

A forward pass, of a forward and a backward one.
"""


@dataclass(frozen=True)
class Speed:
    """Seconds an image, and to compile both steps."""

    plain_s: float
    gnp_s: float
    compile_s: float


@dataclass(frozen=True)
class CellEstimate:
    """What a cell comes to."""

    cell: Cell
    state: CellState
    plain_steps: int
    gnp_steps: int
    whole_s: float
    """All of it, from the first step to the last evaluation."""
    left_s: float
    """What is not done yet."""


def estimate(
    cells: Sequence[Cell], states: dict[str, CellState], notify: Notify
) -> tuple[list[CellEstimate], float]:
    """Estimate every cell.

    Plain and GNP steps are measured once for each distinct model and batch, on random images.

    Returns:
        The cells, and the seconds that all of them take from now on, compilation included. It is
        the same for any number of jobs: more of them at a time have less of the machine each.

    Raises:
        DataError: The size of a data set is not known without its files, and they are missing.
    """
    speeds: dict[str, Speed] = {}
    found = []
    for cell in cells:
        key = _kind(cell.config)
        if key not in speeds:
            speeds[key] = _measure(settle(cell.config, count_devices), notify)
        found.append(_estimate(cell, states[cell.name], speeds[key]))
    left_s = sum(each.left_s for each in found)
    if left_s:
        left_s += sum(speed.compile_s for speed in speeds.values())
    return found, left_s


def _kind(config: RunConfig) -> str:
    """Return what the time of a step depends on."""
    data = config.data
    parts = [
        config.model.model_dump(),
        data.name,
        data.image_size,
        data.batch_size,
        data.augment,
        data.mix,
        config.gr.model_dump(exclude={"strategy", "r", "alpha", "warmup_epochs"}),
        config.optimizer.name,
        config.train.dtype,
    ]
    return json.dumps(parts, sort_keys=True)


def _measure(config: Resolved, notify: Notify) -> Speed:
    mesh = make_mesh(config)
    size = config.data.batch_size
    if platform(mesh) == "cpu":
        size = small_batch(config, mesh.size)
        config = config.replaced({"data.batch_size": size})
    notify(f"measuring {config.model.name} at batch {size}")
    kinds = time_steps(config, rounds=2, steps=1, notify=lambda text: None)
    return Speed(
        kinds["plain"].step_s / size,
        kinds["gnp"].step_s / size,
        sum(timed.compile_s for timed in kinds.values()),
    )


def small_batch(config: Resolved, devices: int) -> int:
    """Return a batch size of about `CPU_BATCH` a device, at most the configured one.

    Groups, microbatches and devices divide it evenly.
    """
    parts = devices * math.lcm(config.gr.groups, config.train.accumulate)
    multiples = math.ceil(CPU_BATCH * devices / parts)
    return min(config.data.batch_size, multiples * parts)


def _estimate(cell: Cell, state: CellState, speed: Speed) -> CellEstimate:
    config = cell.config
    data = describe_data(config.data)
    if data is None:
        raise DataError(f"the size of {config.data.name} is not known: give --data-dir")
    batch_size, epochs = config.data.batch_size, config.train.epochs
    plain, gnp = count_steps(cell.on_one_device, steps_per_epoch(data.num_train, batch_size))
    evaluations = -(-epochs // config.train.eval_every_epochs)
    evaluated = evaluations * (data.num_validation + data.num_test)
    steps_s = batch_size * (plain * speed.plain_s + gnp * speed.gnp_s)
    whole_s = steps_s + EVALUATION * evaluated * speed.plain_s
    return CellEstimate(cell, state, plain, gnp, whole_s, whole_s * (1 - _share_done(cell, state)))


def _share_done(cell: Cell, state: CellState) -> float:
    if state != "begun":
        return float(state == "finished")
    epoch = reached_epoch(RunFolder(cell.run_dir).records()) or 0.0
    return min(epoch / cell.config.train.epochs, 1.0)
