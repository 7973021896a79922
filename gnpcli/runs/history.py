"""What a run has logged, each metric as a series over steps, epochs or time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from gnpcli.config.resolved import Resolved
from gnpcli.errors import DataError
from gnpcli.runs.contents import Record, is_number
from gnpcli.runs.folder import RunFolder

XAxis = Literal["step", "epoch", "time"]
"""What a curve is drawn over: steps, epochs, or seconds of wall time."""

Values = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class History:
    """What a run has logged."""

    folder: Path
    config: Resolved
    records: Sequence[Record]
    """In the order of the file."""
    damage: str | None
    """Which line of the log is damaged, where one is; the records are those before it."""

    def keys(self, split: str) -> dict[str, None]:
        """Return the keys that have a number in some record of `split`, in order of appearance."""
        keys: dict[str, None] = {}
        for record in self.records:
            if record["split"] == split:
                for key, value in record.items():
                    if key not in keys and is_number(value):
                        keys[key] = None
        return keys

    def series(
        self, split: str, key: str, axis: XAxis
    ) -> tuple[npt.NDArray[np.int64], Values, Values]:
        """Return a metric as ``(steps [N], x [N], y [N])``; the steps rise.

        Of records of the same step, the last one counts. y is NaN where a record has null, which
        stands for a value that was not finite.

        Args:
            split: ``train``, ``val`` or ``test``.
            key: As in ``metrics.jsonl``.
            axis: What x is. Time goes on where the clock of a resumed run starts again at 0. An
                evaluation has no time of its own: it lies on the line between the training records
                around it.
        """
        by_step = {
            record["step"]: record
            for record in self.records
            if record["split"] == split and key in record
        }
        records = [by_step[step] for step in sorted(by_step)]
        steps = np.array([record["step"] for record in records], np.int64)
        values = [record[key] for record in records]
        y = np.array([value if is_number(value) else np.nan for value in values], np.float64)
        return steps, self._x(records, steps, axis), y

    def _x(self, records: Sequence[Record], steps: npt.NDArray[np.int64], axis: XAxis) -> Values:
        if axis == "step":
            return steps.astype(np.float64)
        if axis == "epoch":
            return np.array([record.get("epoch", np.nan) for record in records], np.float64)
        known, seconds = self._clock
        if not len(known):
            return np.full(len(steps), np.nan)
        return np.interp(steps, known, seconds)

    @cached_property
    def _clock(self) -> tuple[Values, Values]:
        """Rising steps, and seconds of training since the first start without those between
        sessions.
        """
        steps, seconds, before, last = [], [], 0.0, 0.0
        for record in self.records:
            elapsed = record.get("elapsed_s")
            if not is_number(elapsed):
                continue
            if elapsed < last:  # a session's clock starts at 0
                before += last
            last = elapsed
            steps.append(float(record["step"]))
            seconds.append(before + elapsed)
        order = np.argsort(steps, kind="stable")
        return np.array(steps)[order], np.array(seconds)[order]


def read_history(folder: Path) -> History:
    """Read the log of a run.

    Raises:
        ConfigError: Not a run folder.
        DataError: Nothing has been logged yet, or nothing of it can be read.
    """
    damage: list[str] = []
    run = RunFolder(folder, damage.append)
    config, records = run.config(), run.records()
    if not records:
        why = f": {damage[0]}" if damage else ""
        raise DataError(f"{folder} has no metrics yet (metrics.jsonl is empty or missing){why}")
    return History(folder, config, records, damage[0] if damage else None)


def read_histories(folders: Iterable[Path]) -> list[History]:
    """Read the logs of several runs.

    Raises:
        ConfigError, DataError: As `read_history`. DataError also where a run is given twice.
    """
    histories: dict[Path, History] = {}
    for folder in folders:
        place = folder.resolve()
        if place in histories:
            raise DataError(f"{folder} is given twice")
        histories[place] = read_history(folder)
    return list(histories.values())
