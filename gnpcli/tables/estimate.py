"""How long a table takes, from the speed of its steps: the dry run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from gnpcli.config.resolved import Resolved, settle
from gnpcli.data.base import DataInfo
from gnpcli.data.registry import describe_data
from gnpcli.errors import DataError
from gnpcli.recipes.plan import Work, work_of
from gnpcli.recipes.presets import count_devices
from gnpcli.runs.folder import RunFolder
from gnpcli.runs.log import reached_epoch
from gnpcli.tables.cells import Cell, CellState


@dataclass(frozen=True)
class Speed:
    """Seconds an image, and to compile both steps."""

    plain_s: float
    gnp_s: float
    compile_s: float
    """0 where nothing was compiled."""
    source: Literal["counted", "measured now", "measured before"]


SpeedOf = Callable[[Resolved, DataInfo], Speed]
"""Tells the speed of a configuration on images of some size."""


@dataclass(frozen=True)
class CellEstimate:
    """What a cell comes to."""

    cell: Cell
    state: CellState
    work: Work
    whole_s: float
    """All of it, from the first step to the last evaluation."""
    left_s: float
    """What is not done yet."""
    speed: Speed


def estimate(
    cells: Sequence[Cell], states: dict[str, CellState], speed_of: SpeedOf
) -> list[CellEstimate]:
    """Estimate every cell, without compilation.

    Raises:
        DataError: The size of a data set is not known without its files, and they are missing.
    """
    return [_estimate(cell, states[cell.name], speed_of) for cell in cells]


def _estimate(cell: Cell, state: CellState, speed_of: SpeedOf) -> CellEstimate:
    config = cell.config
    data = describe_data(config.data)
    if data is None:
        raise DataError(f"the size of {config.data.name} is not known: give --data-dir")
    settled = settle(config, count_devices)
    speed = speed_of(settled, data)
    work = work_of(settled, data)
    plain_s, gnp_s = (work.batch_size * image_s for image_s in (speed.plain_s, speed.gnp_s))
    whole_s = (work.single + work.evaluations) * plain_s + work.double * gnp_s
    left_s = whole_s * (1 - _share_done(cell, state))
    return CellEstimate(cell, state, work, whole_s, left_s, speed)


def _share_done(cell: Cell, state: CellState) -> float:
    if state != "begun":
        return float(state == "finished")
    epoch = reached_epoch(RunFolder(cell.run_dir).records()) or 0.0
    return min(epoch / cell.config.train.epochs, 1.0)
