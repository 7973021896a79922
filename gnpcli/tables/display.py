"""A table that fills in while its cells run: live on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import TracebackType

from gnpcli.tables.runner import CellProgress, CellStatus
from gnpcli.tables.spec import Table
from gnpcli.tables.statistics import summarize
from gnpcli.tables.time_left import TimeLeft
from gnpcli.terminal.grid import Cell, Grid, Styled
from gnpcli.terminal.live import LiveGrid
from gnpcli.terminal.screen import Screen
from gnpcli.terminal.words import clock, duration, spread

PLAIN_EVERY_S = 60.0
"""Seconds between two lines about a running cell, without a terminal."""


class TableDisplay:
    """Shows what it is called with; a context manager.

    Args:
        table: The table.
        screen: Where it is shown.
        now: The clock, in seconds.
    """

    def __init__(self, table: Table, screen: Screen, *, now: Callable[[], float] = time.monotonic):
        self._table, self._screen, self._now = table, screen, now
        self._unit = table.spec.metric.kind.unit
        self._start = now()
        self._time_left = TimeLeft(self._start)
        self._told: dict[str, tuple[CellStatus, float]] = {}
        self._live = LiveGrid(screen)

    def __call__(self, progress: Sequence[CellProgress]) -> None:
        """Show where all cells stand."""
        if self._live.is_shown:
            self._live.update(self._picture(progress))
        else:
            self._tell(progress)

    def _picture(self, progress: Sequence[CellProgress]) -> Grid:
        """Return the table as it is now."""
        places: dict[tuple[str, str], list[CellProgress]] = {}
        for item in progress:
            places.setdefault((item.cell.row, item.cell.column), []).append(item)
        rows = list(dict.fromkeys(row for row, _ in places))
        columns = list(dict.fromkeys(column for _, column in places))
        header = ["", *(self._table.label("columns", column) for column in columns)]
        lines: list[list[Cell]] = []
        for row in rows:
            cells = [self._cell(places.get((row, column), [])) for column in columns]
            lines.append([self._table.label("rows", row), *cells])
        return Grid(header, lines, title=self._title(progress))

    def _title(self, progress: Sequence[CellProgress]) -> str:
        parts = [f"{self._table.spec.title}: {_count_done(progress)} of {len(progress)} cells"]
        failed = sum(item.status == "failed" for item in progress)
        if failed:
            parts.append(f"{failed} failed")
        now = self._now()
        parts.append(clock(now - self._start))
        left_s = self._time_left(progress, now)
        if left_s is not None:
            parts.append(f"about {duration(left_s)} left")
        return f"{', '.join(parts)}; Ctrl-C saves and stops"

    def _cell(self, items: Sequence[CellProgress]) -> list[Styled]:
        """Return the mean of what is finished, what runs and what failed, a line each."""
        lines = []
        values = [item.value for item in items if item.is_done and item.value is not None]
        if values:
            sample = summarize(values)
            text = f"{spread(sample.mean, sample.std)} ({sample.n} of {len(items)})"
            lines.append(Styled(text, "bold"))
        for item in items:
            if item.status in ("running", "elsewhere"):
                lines.append(Styled(self._running(item), "cyan"))
        for item in items:
            if item.status == "failed":
                lines.append(Styled(f"seed {item.cell.seed} failed", "red"))
        return lines or [Styled("waiting", "dim")]

    def _running(self, item: CellProgress) -> str:
        parts = [f"seed {item.cell.seed}"]
        if item.epoch is not None:
            parts.append(f"epoch {item.epoch:.0f}/{item.cell.config.train.epochs}")
        if item.value is not None:
            parts.append(self._value(item))
        if item.status == "elsewhere":
            parts.append(_where(item))
        return " ".join(parts)

    def _value(self, item: CellProgress) -> str:
        return "no value" if item.value is None else f"{item.value:.2f}{self._unit}"

    def _tell(self, progress: Sequence[CellProgress]) -> None:
        """Print a line for each cell whose status is new, and now and then for one that runs."""
        done = f"{_count_done(progress)} of {len(progress)} cells"
        now = self._now()
        for item in progress:
            before, when = self._told.get(item.cell.name, ("waiting", now))
            is_new = item.status != before
            is_due = item.status == "running" and now - when >= PLAIN_EVERY_S
            if is_new or is_due:
                self._told[item.cell.name] = (item.status, now)
                self._screen.line(self._line(item, is_new, done))

    def _line(self, item: CellProgress, is_new: bool, done: str) -> str:
        name, cell = item.cell.name, item.cell
        match item.status:
            case "kept":
                return f"{name}: finished before, {self._value(item)}"
            case "finished":
                return f"{name}: {self._value(item)} ({done})"
            case "failed":
                return f"{name}: failed: {item.problem}"
            case "elsewhere":
                return f"{name}: running {_where(item)}"
            case "running" if is_new:
                return f"{name}: running, {cell.log} tells more"
            case "running":
                return f"{cell.row} {cell.column} {self._running(item)}"
            case _:
                return f"{name}: {item.status}"

    def __enter__(self) -> TableDisplay:
        self._live.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.__exit__(kind, error, trace)


def _where(item: CellProgress) -> str:
    """Return who runs a cell elsewhere."""
    return "elsewhere" if item.holder is None else f"on {item.holder.host} pid {item.holder.pid}"


def _count_done(progress: Sequence[CellProgress]) -> int:
    return sum(item.is_done for item in progress)
